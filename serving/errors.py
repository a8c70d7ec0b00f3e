"""Errors of the model's server. `tasks.errors` has the complete hierarchy."""


class ImageQAError(Exception):
    """Base of every error this package raises on purpose; its message is meant for the user."""


class ServerError(ImageQAError):
    """A vLLM server could not be started, or died."""


class EndpointError(ImageQAError):
    """An endpoint cannot be used: unreachable, wrong key, or it does not serve the model."""


class EndpointUnreachableError(EndpointError):
    """No server answers at the endpoint's address, or it is still starting."""


class EndpointLostError(EndpointError):
    """No server of the endpoint has answered for as long as the run may wait."""
