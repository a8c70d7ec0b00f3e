"""The fields of an `ObjectStore` block, and how its secrets stay where they are."""

import hashlib
import json
import re
import uuid
from abc import ABC
from collections.abc import Callable
from typing import Any, Self, cast
from urllib.parse import urlsplit

from prefect.filesystems import WritableFileSystem
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, field_validator, model_validator

from ..serving.endpoint import first_mistake
from .errors import StoreError
from .filesystems import S3Credentials, split_uri

_PLAIN_FIELDS = ("uri", "endpoint_url", "region", "credentials")
"""What may be written anywhere: into Prefect's database, a pickle, a name's digest."""


class StoreBlock(WritableFileSystem, ABC):  # Prefect's catalog leaves abstract blocks out
    """Where a store is and who we are to it. Use its subclass `ObjectStore`."""

    # What is refused may hold a secret.
    model_config = ConfigDict(hide_input_in_errors=True)

    uri: str = Field(
        title="URI",
        description="A local path or `s3://bucket/prefix`. A local path is made absolute.",
    )
    access_key_id: str = Field(
        default="",
        title="Access key ID",
        description="If empty, the AWS environment, profile or role says who we are.",
    )
    secret_access_key: SecretStr = Field(
        default=SecretStr(""),
        title="Secret access key",
        description="Belongs to the key ID. Once saved, it is not shown again.",
    )
    session_token: SecretStr = Field(
        default=SecretStr(""), title="Session token", description="Of temporary credentials only."
    )
    endpoint_url: str = Field(
        default="",
        title="Endpoint URL",
        description="The S3 server, where it is not AWS's own, such as `http://minio:9000`.",
    )
    region: str = Field(default="", description="Region of the bucket, where the server has any.")
    credentials: str = Field(
        default="",
        description="Name of another Image QA Store block whose credentials are used instead.",
    )

    _named_credentials: S3Credentials | None = PrivateAttr(None)
    _accept: Callable[[str, bytes], object] | None = PrivateAttr(None)

    @field_validator("uri")
    @classmethod
    def _make_absolute(cls, uri: str) -> str:
        protocol, path = split_uri(uri)
        return path if protocol == "file" else f"s3://{path}"

    @field_validator("endpoint_url")
    @classmethod
    def _check_endpoint(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            complete = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:  # its text may hold a password
            complete = False
        if url and (not complete or "@" in parts.netloc or parts.query or parts.fragment):
            raise StoreError(
                "the endpoint URL must be a plain http:// or https:// URL, without a user"
            )
        return url

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        key, secret = self.access_key_id.strip(), self.secret_access_key.get_secret_value().strip()
        if bool(key) != bool(secret):
            raise StoreError(
                f"{self.uri}: give both the access key ID and the secret access key, or neither"
            )
        if self.credentials and key:
            raise StoreError(
                f"{self.uri}: give either credentials or the name of a block that has them"
            )
        return self

    @property
    def s3_credentials(self) -> S3Credentials | None:
        """What `open_filesystem` is to be given; none if all comes from the environment.

        Raises:
            StoreError: the block that `credentials` names cannot be used.
        """
        given = S3Credentials(
            access_key_id=self.access_key_id.strip(),
            secret_access_key=self.secret_access_key.get_secret_value().strip(),
            session_token=self.session_token.get_secret_value().strip(),
            endpoint_url=self.endpoint_url,
            region=self.region,
        )
        if self.credentials:
            if self._named_credentials is None:
                named = self.load_saved(self.credentials)
                if named.credentials:
                    raise StoreError(
                        f"the {self._block_type_name} block {self.credentials!r} has no "
                        f"credentials of its own: name {named.credentials!r} itself"
                    )
                self._named_credentials = named.s3_credentials or S3Credentials()
            return self._named_credentials.at(self.endpoint_url, self.region)
        return None if given == S3Credentials() else given

    @classmethod
    def find_saved(cls, name: str) -> Self | None:
        """The saved block of that name, if there is one.

        Raises:
            StoreError: it holds something else than a store.
        """
        try:
            return cast("Self", cast("Any", cls).load(name, _sync=True))
        except ValueError:
            return None
        except RuntimeError as error:
            # Prefect's UI saves what its form allows, and that is more.
            if not isinstance(cause := error.__cause__, ValueError):
                raise
            raise StoreError(
                f"the {cls._block_type_name} block {name!r} cannot be used: "
                f"{first_mistake(cause)}; correct it in Prefect under Blocks"
            ) from None

    @classmethod
    def load_saved(cls, name: str) -> Self:
        """The saved block of that name.

        Raises:
            StoreError: there is none, or it holds something else.
        """
        block = cls.find_saved(name)
        if block is None:
            raise StoreError(
                f"there is no {cls._block_type_name} block named {name!r}: save one in Prefect "
                "under Blocks (`prefect block register -m prefect_imageqa` lists its type there)"
            )
        return block

    def at(self, uri: str) -> Self:
        """The store of another URI, with the same credentials."""
        if self.access_key_id and self._block_document_name is None:
            fields = {name: getattr(self, name) for name in type(self).model_fields}
            return type(self)(**(fields | {"uri": uri}))
        return self._without_secrets(uri)

    def accepting(self, accept: Callable[[str, bytes], object]) -> Self:
        """This store, where reading a result record also calls `accept` with its name and bytes.

        A record for which `accept` raises counts as missing.
        """
        store = self.model_copy()
        store._accept = accept
        return store

    def result_storage(self) -> tuple[Self, str]:
        """Where Prefect keeps results that belong here.

        Prefect wants a saved block. It is one per bucket, or this machine's disk, and credentials,
        however many outputs there are; it holds no secret.

        Returns:
            The saved block of the bucket or disk, and this store's path in it.

        Raises:
            StoreError: the credentials are this block's own and it was never saved.
        """
        protocol, path = split_uri(self.uri)
        if protocol == "file":
            return self._without_secrets("/").saved(), path.strip("/")
        bucket, _, folder = path.partition("/")
        return self._without_secrets(f"s3://{bucket}").saved(), folder

    def saved(self) -> Self:
        """This store with a block document in Prefect; saved now if it has none.

        Raises:
            StoreError: the credentials are this block's own and it was never saved.
        """
        if self._block_document_id is not None:
            return self
        block = self._without_secrets(self.uri)
        content = block._plain_content()
        protocol, path = split_uri(self.uri)
        place = "local" if protocol == "file" else ""
        words = re.sub(r"[^a-z0-9]+", " ", f"{place} {path} {block.credentials}".lower()).split()
        name = "-".join(["image-qa-results", *words])
        found = self.find_saved(name)
        if found is not None and found._plain_content() != content:  # another server's, say
            digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
            name = f"{name}-{digest}"
            found = self.find_saved(name)
        if found is not None and found._plain_content() == content:
            block._block_document_id = found._block_document_id
            block._block_document_name = name
        else:
            cast("Any", block).save(name, overwrite=True, _sync=True)
        return block

    def _plain_content(self) -> list[str]:
        return [getattr(self, name) for name in _PLAIN_FIELDS]

    def _without_secrets(self, uri: str) -> Self:
        """A copy that names the block which has the secrets."""
        credentials = self.credentials
        if self.access_key_id:
            if self._block_document_name is None:
                raise StoreError(
                    f"{self.uri}: its credentials would be stored in the open; save this "
                    f'{self._block_type_name} block first: .save("a-name")'
                )
            credentials = self._block_document_name
        block = type(self)(
            uri=uri,
            endpoint_url=self.endpoint_url,
            region=self.region,
            credentials=credentials,
        )
        if credentials:
            block._named_credentials = (
                self._named_credentials if self.credentials else self.s3_credentials
            )
        return block

    def __reduce__(self) -> tuple[Any, ...]:
        # Other processes load the credentials from Prefect; a pickle may end up anywhere.
        block = self._without_secrets(self.uri)
        fields = {name: getattr(block, name) for name in _PLAIN_FIELDS}
        return _restore, (type(self), fields, self._block_document_id, self._accept)


def _restore(
    cls: type[StoreBlock],
    fields: dict[str, str],
    document: uuid.UUID | None,
    accept: Callable[[str, bytes], object] | None,
) -> Any:
    """What unpickling calls."""
    block = cast("Any", cls)(**fields)
    block._block_document_id = document
    block._accept = accept
    return block
