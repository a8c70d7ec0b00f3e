"""Every error that this package raises deliberately: one tree, one line of message each.

    ImageQAError               what, where (file, row, URL without secrets), what to do
    ├── DatasetError           the dataset cannot be used at all
    ├── EndpointError          an endpoint cannot be used
    │   ├── EndpointUnreachableError  no server answers at its address
    │   └── EndpointLostError  no server has answered for as long as a run may wait
    ├── ServerError            a vLLM server could not be started, or died
    ├── StoreError             the output cannot be read or written
    │   ├── ObjectMissingError     there is no object of that name
    │   ├── ObjectCorruptedError   an object does not hold what was written
    │   ├── RecordRefusedError     deserializing a stored result could run code
    │   ├── RecordCorruptedError   a stored result is truncated or of another kind
    │   ├── StoreUnavailableError  the store is unavailable at the moment
    │   │   └── ObjectUnavailableError  it answers, but not about this object
    │   ├── AccessDeniedError      no credentials, or they were rejected
    │   └── OutputBusyError        another run is writing to the output
    ├── ErrorRateError         too many rows failed, or none is answered
    ├── PilotError             the pilot was not good enough, or not approved
    ├── ConditionError         the condition for pairs to be kept is none, or cannot be evaluated
    └── PrefectServerError     no Prefect server, or it cannot do what was requested

`records.RowError` is not part of the tree: it affects one row and never leaves a step.
"""

from ..serving.errors import EndpointError as EndpointError
from ..serving.errors import EndpointLostError as EndpointLostError
from ..serving.errors import EndpointUnreachableError as EndpointUnreachableError
from ..serving.errors import ImageQAError as ImageQAError
from ..serving.errors import ServerError as ServerError


class DatasetError(ImageQAError):
    """The dataset cannot be used at all: missing, empty, unreadable, no image column."""


class StoreError(ImageQAError):
    """The output cannot be read or written."""


class ObjectMissingError(StoreError):
    """There is no object of that name; never raised for any other failure."""


class ObjectCorruptedError(StoreError):
    """An object does not hold what was written."""


class RecordRefusedError(StoreError):
    """A stored result names a serializer that this package does not use: it could run code."""


class RecordCorruptedError(StoreError):
    """A stored result is truncated, or does not hold the replies to its batch."""


class StoreUnavailableError(StoreError):
    """The store did not answer or reported a temporary failure; a retry may succeed.

    Attributes:
        server: which store, such as "S3 at http://minio:9000".
        reason: what it does, such as "does not answer (connection refused)".
        is_misaddressed: whether a retry can only help if the store has answered before: its name
            is unknown, or it is not trusted.
    """

    def __init__(
        self, message: str, server: str = "", reason: str = "", *, is_misaddressed: bool = False
    ) -> None:
        super().__init__(message)
        self.server = server
        self.reason = reason
        self.is_misaddressed = is_misaddressed


class ObjectUnavailableError(StoreUnavailableError):
    """The store answers other requests, but not those for this object."""


class AccessDeniedError(StoreError):
    """There are no S3 credentials, they were rejected, or they do not permit the operation."""


class OutputBusyError(StoreError):
    """Another run is writing to the output, and this run does not wait for it."""


class ErrorRateError(ImageQAError):
    """Too many rows failed, or none of the dataset is answered."""


class PilotError(ImageQAError):
    """Too few rows of the pilot are usable, or nobody approved it."""


class ConditionError(ImageQAError):
    """The condition for pairs to be kept is none, names an unknown column, or cannot be evaluated.

    The same goes for limits that no choice of pairs can meet.
    """


class PrefectServerError(ImageQAError):
    """There is no Prefect server, or it cannot do what was requested."""
