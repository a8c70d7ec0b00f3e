"""Errors of the model's server. `tasks.errors` has the complete hierarchy."""

from .printable import printable, printable_lines


class ImageQAError(Exception):
    """Base of every error this package raises on purpose; its message is meant for the user.

    It may quote anyone: servers, names of files and columns, cells. Whatever they contain, it is
    one line, and safe for a terminal and a log.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class ServerError(ImageQAError):
    """A vLLM server could not be started, or died; more lines of the message are its log's."""

    def __str__(self) -> str:
        return printable_lines(Exception.__str__(self))


class EndpointError(ImageQAError):
    """An endpoint cannot be used: unreachable, wrong key, or it does not serve the model."""


class EndpointUnreachableError(EndpointError):
    """No server answers at the endpoint's address, or it is still starting."""


class EndpointLostError(EndpointError):
    """No server of the endpoint has answered for as long as the run may wait."""
