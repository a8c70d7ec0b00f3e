"""Every error that this package raises on purpose: one line for the user, one tree.

    ImageQAError               what, where (file, row, URL without secrets), what to do
    ├── DatasetError           the dataset as a whole cannot be used
    ├── EndpointError          an endpoint cannot be used
    │   └── EndpointLostError  its server stopped answering; it may come back
    ├── ServerError            a vLLM server could not be started, or died
    ├── StoreError             the output cannot be read or written
    │   ├── ObjectMissingError     there is no object of that name
    │   ├── ObjectCorruptedError     an object does not hold what was written
    │   ├── RecordRefusedError     a stored result could run code when it is read
    │   ├── RecordCorruptedError     a stored result is cut off, or something else
    │   ├── StoreUnavailableError  the store does not answer now
    │   ├── AccessDeniedError      no credentials, or they are refused
    │   └── OutputBusyError        another run is writing to the output
    ├── ErrorRateError         too many of the rows asked have failed
    └── PrefectServerError     there is no Prefect server, or it cannot do what is asked

`records.RowError` is not among them: it costs one row, and never leaves a step.
"""

from ..serving.errors import EndpointError as EndpointError
from ..serving.errors import EndpointLostError as EndpointLostError
from ..serving.errors import ImageQAError as ImageQAError
from ..serving.errors import ServerError as ServerError


class DatasetError(ImageQAError):
    """The dataset as a whole cannot be used: missing, empty, unreadable, no image column."""


class StoreError(ImageQAError):
    """The output cannot be read or written."""


class ObjectMissingError(StoreError):
    """There is no object of that name; no other failure looks like this."""


class ObjectCorruptedError(StoreError):
    """An object does not hold what was written."""


class RecordRefusedError(StoreError):
    """A stored result is of another kind than this package writes: reading it could run code."""


class RecordCorruptedError(StoreError):
    """A stored result is cut off, or does not hold the replies to its batch."""


class StoreUnavailableError(StoreError):
    """The store did not answer, or answered that it cannot now; later it may."""


class AccessDeniedError(StoreError):
    """There are no S3 credentials, they were refused, or they do not allow this."""


class OutputBusyError(StoreError):
    """Another run is writing to the output, and the run was told not to wait for it."""


class ErrorRateError(ImageQAError):
    """Too many of the rows that were asked have failed."""


class PrefectServerError(ImageQAError):
    """There is no Prefect server, or it cannot do what is asked of it."""
