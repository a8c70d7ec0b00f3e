"""The fields of an `ObjectStore` block, and how its secrets stay where they are."""

import hashlib
import json
import re
import uuid
from abc import ABC
from collections.abc import Callable
from typing import Any, Self, cast

from prefect.filesystems import WritableFileSystem
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, field_validator, model_validator

from ...serving.endpoint import find_block, http_url, is_more_than_address, load_block
from ..errors import StoreError
from .credentials import S3Credentials
from .filesystems import split_uri


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
        if url and ((parts := http_url(url)) is None or is_more_than_address(parts)):
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
                named = load_block(type(self), self.credentials, StoreError)
                if named.credentials:
                    raise StoreError(
                        f"the {self._block_type_name} block {self.credentials!r} has no "
                        f"credentials of its own: name {named.credentials!r} itself"
                    )
                self._named_credentials = named.s3_credentials or S3Credentials()
            return self._named_credentials.at(self.endpoint_url, self.region)
        return None if given == S3Credentials() else given

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
        """Where Prefect keeps results that belong here: a saved block, and this store's path in it.

        It is one block per bucket (or this machine's disk) and credentials, however many outputs
        there are; it holds no secret.

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
        content = block._plain_fields()
        protocol, path = split_uri(self.uri)
        place = "local" if protocol == "file" else ""
        words = re.sub(r"[^a-z0-9]+", " ", f"{place} {path} {block.credentials}".lower()).split()
        name = "-".join(["image-qa-results", *words])
        found = find_block(type(self), name, StoreError)
        if found is not None and found._plain_fields() != content:  # another server's, say
            digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
            name = f"{name}-{digest}"
            found = find_block(type(self), name, StoreError)
        if found is not None and found._plain_fields() == content:
            block._block_document_id = found._block_document_id
            block._block_document_name = name
        else:
            cast("Any", block).save(name, overwrite=True, _sync=True)
        return block

    def _plain_fields(self) -> dict[str, str]:
        """What may be written anywhere: into Prefect's database, a pickle, a name's digest."""
        names = ("uri", "endpoint_url", "region", "credentials")
        return {name: getattr(self, name) for name in names}

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
        block = type(self)(**(self._plain_fields() | {"uri": uri, "credentials": credentials}))
        if credentials:
            block._named_credentials = (
                self._named_credentials if self.credentials else self.s3_credentials
            )
        return block

    def __reduce__(self) -> tuple[Any, ...]:
        # Other processes load the credentials from Prefect; a pickle may end up anywhere.
        block = self._without_secrets(self.uri)
        fields = block._plain_fields()
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
