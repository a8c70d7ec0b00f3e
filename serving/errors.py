"""What can go wrong for a user's reason. Each message is one line: what, where, what to do."""


class ImageQAError(Exception):
    """Base of every error this package raises on purpose; its text is meant for the user."""


class ServerError(ImageQAError):
    """A vLLM server could not be started, or died."""


class EndpointError(ImageQAError):
    """An endpoint cannot be used: unreachable, wrong key, or it does not serve the model."""
