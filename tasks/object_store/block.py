"""The fields of an `ObjectStore` block, and how its secrets stay out of pickles and results."""

import uuid
from abc import ABC
from dataclasses import replace
from typing import Any, Self, cast

from prefect.filesystems import WritableFileSystem
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, field_validator, model_validator

from ...serving.endpoint import http_url, load_block, may_hold_secrets
from ...serving.sync_block import SyncBlock
from ..errors import StoreError
from .credentials import S3Credentials
from .filesystems import split_uri
from .patience import Patience


class StoreBlock(SyncBlock, WritableFileSystem, ABC):  # abstract: Prefect's block catalog skips it
    """Location of a store and the credentials for it. Use its subclass `ObjectStore`."""

    # Rejected input may contain a secret.
    model_config = ConfigDict(hide_input_in_errors=True)

    uri: str = Field(
        title="URI",
        description="A local path or `s3://bucket/prefix`. A local path is made absolute.",
    )
    access_key_id: str = Field(
        default="",
        title="Access key ID",
        description="If empty, credentials come from the AWS environment, profile or role.",
    )
    secret_access_key: SecretStr = Field(
        default=SecretStr(""),
        title="Secret access key",
        description="The secret for the access key ID. Once saved, it is not shown again.",
    )
    session_token: SecretStr = Field(
        default=SecretStr(""), title="Session token", description="Only for temporary credentials."
    )
    endpoint_url: str = Field(
        default="",
        title="Endpoint URL",
        description="The S3 server if it is not AWS's own, such as `http://minio:9000`.",
    )
    region: str = Field(default="", description="Region of the bucket, if the server has regions.")
    credentials: str = Field(
        default="",
        description="Name of another Image QA Store block whose credentials to use instead.",
    )

    _named_credentials: S3Credentials | None = PrivateAttr(None)
    _patience: Patience | None = PrivateAttr(None)

    @field_validator("uri")
    @classmethod
    def _make_absolute(cls, uri: str) -> str:
        protocol, path = split_uri(uri)
        return path if protocol == "file" else f"s3://{path}"

    @field_validator("endpoint_url")
    @classmethod
    def _check_endpoint(cls, url: str) -> str:
        if url and ((parts := http_url(url)) is None or may_hold_secrets(parts)):
            raise StoreError(
                "the endpoint URL must be a plain http:// or https:// URL, without a user"
            )
        return url

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        key, secret = self.access_key_id.strip(), self.secret_access_key.get_secret_value().strip()
        if bool(key) != bool(secret):
            raise StoreError(
                f"{self.uri}: set both the access key ID and the secret access key, or neither"
            )
        if self.credentials and key:
            raise StoreError(
                f"{self.uri}: set either credentials or the name of a block that has them, not both"
            )
        return self

    @property
    def s3_credentials(self) -> S3Credentials | None:
        """The credentials for `open_filesystem`; None if everything comes from the environment.

        Raises:
            StoreError: the block that `credentials` names cannot be used.
        """
        found = self._find_credentials()
        if self._patience is None:
            return found
        return replace(found or S3Credentials(), patience=self._patience)

    def _find_credentials(self) -> S3Credentials | None:
        own = S3Credentials(
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
            return self._named_credentials.for_server(self.endpoint_url, self.region)
        return None if own == S3Credentials() else own

    def with_uri(self, uri: str) -> Self:
        """The store at another URI, with the same credentials."""
        if self.access_key_id and self._block_document_name is None:
            fields = {name: getattr(self, name) for name in type(self).model_fields}
            store = type(self)(**(fields | {"uri": uri}))
            store._patience = self._patience
            return store
        return self._without_secrets(uri)

    def with_patience(self, patience: Patience) -> Self:
        """A copy that waits for an S3 server that does not answer; by default a store does not.

        Its own copies share the patience, but not those that are pickled.
        """
        store = self.model_copy()
        store._patience = patience
        return store

    def _public_fields(self) -> dict[str, str]:
        """The fields that are safe to store: in Prefect's database, a pickle, the name's digest."""
        names = ("uri", "endpoint_url", "region", "credentials")
        return {name: getattr(self, name) for name in names}

    def _without_secrets(self, uri: str) -> Self:
        """A copy that refers to the block with the secrets by name."""
        credentials = self.credentials
        if self.access_key_id:
            if self._block_document_name is None:
                raise StoreError(
                    f"{self.uri}: its credentials would be stored in plain text; save this "
                    f'{self._block_type_name} block first: .save("a-name")'
                )
            credentials = self._block_document_name
        block = type(self)(**(self._public_fields() | {"uri": uri, "credentials": credentials}))
        if credentials:
            block._named_credentials = (
                self._named_credentials if self.credentials else self.s3_credentials
            )
        block._patience = self._patience
        return block

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle may end up anywhere, so other processes load the credentials from Prefect.
        block = self._without_secrets(self.uri)
        fields = block._public_fields()
        return _restore, (type(self), fields, self._block_document_id)


def _restore(cls: type[StoreBlock], fields: dict[str, str], document: uuid.UUID | None) -> Any:
    """Rebuild a pickled store."""
    block = cast("Any", cls)(**fields)
    block._block_document_id = document
    return block
