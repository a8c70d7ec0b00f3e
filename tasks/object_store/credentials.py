"""Credentials for an S3 server."""

from dataclasses import dataclass, field, replace
from typing import NoReturn

from ..errors import StoreError
from .patience import Patience


@dataclass(frozen=True, slots=True)
class S3Credentials:
    """Credentials and address of an S3 server. Empty fields are read from the environment.

    Attributes:
        access_key_id: name of the key.
        secret_access_key: the key's secret; never shown.
        session_token: for temporary credentials; never shown.
        endpoint_url: the server, if it is not AWS's own.
        patience: how long to wait if the server does not answer; not at all by default.
    """

    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    endpoint_url: str = ""
    region: str = ""
    # Not compared: connections, which are cached by their credentials, outlive a run.
    patience: Patience = field(default_factory=Patience, compare=False, repr=False)

    def for_server(self, endpoint_url: str, region: str) -> "S3Credentials":
        """The same credentials for another endpoint or region; empty arguments change nothing."""
        return replace(
            self, endpoint_url=endpoint_url or self.endpoint_url, region=region or self.region
        )

    def __reduce__(self) -> NoReturn:
        # A pickle can end up in a cache, a queue or on another machine.
        raise StoreError("S3 credentials cannot be pickled: pass a saved ObjectStore instead")
