"""Errors of the model's server. `tasks.errors` has the complete hierarchy."""


class ImageQAError(Exception):
    """Base of every error this package raises on purpose; its message is meant for the user."""


class ServerError(ImageQAError):
    """A vLLM server could not be started, or died."""


class EndpointError(ImageQAError):
    """An endpoint cannot be used: unreachable, wrong key, or it does not serve the model."""


class EndpointLostError(EndpointError):
    """The server stopped answering in the middle of a batch; it may come back."""
