"""Every error that this package raises deliberately: one tree, one line of message each.

    ImageQAError               what, where (file, row, URL without secrets), what to do
    ├── DatasetError           the dataset cannot be used at all
    ├── EndpointError          an endpoint cannot be used
    │   └── EndpointLostError  its server stopped answering; it may recover
    ├── ServerError            a vLLM server could not be started, or died
    ├── StoreError             the output cannot be read or written
    │   ├── ObjectMissingError     there is no object of that name
    │   ├── ObjectCorruptedError   an object does not hold what was written
    │   ├── RecordRefusedError     deserializing a stored result could run code
    │   ├── RecordCorruptedError   a stored result is truncated or of another kind
    │   ├── StoreUnavailableError  the store is unavailable at the moment
    │   ├── AccessDeniedError      no credentials, or they were rejected
    │   └── OutputBusyError        another run is writing to the output
    ├── ErrorRateError         too many of the rows sent to the model failed
    └── PrefectServerError     no Prefect server, or it cannot do what was requested

`records.RowError` is not part of the tree: it affects one row and never leaves a step.
"""

from ..serving.errors import EndpointError as EndpointError
from ..serving.errors import EndpointLostError as EndpointLostError
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
    """The store did not answer or reported a temporary failure; a retry may succeed."""


class AccessDeniedError(StoreError):
    """There are no S3 credentials, they were rejected, or they do not permit the operation."""


class OutputBusyError(StoreError):
    """Another run is writing to the output, and this run does not wait for it."""


class ErrorRateError(ImageQAError):
    """Too many of the rows sent to the model failed."""


class PrefectServerError(ImageQAError):
    """There is no Prefect server, or it cannot do what was requested."""
