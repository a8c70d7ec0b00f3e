"""What can go wrong with the model's server. The whole tree of errors is in `tasks.errors`."""


class ImageQAError(Exception):
    """Base of every error this package raises on purpose; its text is one line for the user."""


class ServerError(ImageQAError):
    """A vLLM server could not be started, or died."""


class EndpointError(ImageQAError):
    """An endpoint cannot be used: unreachable, wrong key, or it does not serve the model."""


class EndpointLostError(EndpointError):
    """The server stopped answering in the middle of a batch; it may come back."""
