"""A model for the operators, on a server that is running already."""

import os
from typing import Any

from pydantic import SecretStr, ValidationError

from ...serving.endpoint import VLLMEndpoint
from ...tasks.errors import ImageQAError
from ...tasks.runs.parameters import Limits, Sampling


class APIVLMServing_openai:  # noqa: N801 - DataFlow's name
    """A model on a running server with the OpenAI API, such as vLLM.

    Args:
        api_url: URL of the server, of its API (`.../v1`) or of `.../v1/chat/completions`.
        key_name_of_api_key: environment variable with the API key; without it, no key is sent.
        model_name: name the model is served under.
        image_io: not supported, because no images are generated; must be None.
        send_request_stream: makes no difference; a reply is stored when it is complete.
        max_workers: maximum number of requests in flight.
        timeout: seconds after which a request is given up, if the server answers others meanwhile.
        temperature: sampling temperature; 0 always takes the most likely token.
        max_tokens: maximum tokens of a reply; a longer one is quarantined.

    Raises:
        ImageQAError: a URL or the key is malformed, or a value is out of range.
    """

    def __init__(
        self,
        api_url: str = "https://api.openai.com/v1",
        key_name_of_api_key: str = "DF_API_KEY",
        model_name: str = "o4-mini",
        image_io: None = None,
        send_request_stream: bool = False,  # noqa: ARG002
        max_workers: int = 10,
        timeout: int = 1800,
        temperature: float = 0.7,
        max_tokens: int = 1024,
    ) -> None:
        if image_io is not None:
            raise ImageQAError("image_io: generating images is not supported")
        key = os.environ.get(key_name_of_api_key, "")
        try:
            self.endpoint = VLLMEndpoint(urls=[api_url], model=model_name, api_key=SecretStr(key))
            self.sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
            self.limits = Limits(max_in_flight=max_workers, request_timeout=timeout)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or key_name_of_api_key
            text = first["msg"].removeprefix("Value error, ")
            raise ImageQAError(f"APIVLMServing_openai: {where}: {text}") from None

    def start_serving(self) -> None:
        """Does nothing: the server is running."""

    def cleanup(self) -> None:
        """Does nothing: a run closes its connections itself."""

    def flow_parameters(self) -> dict[str, Any]:
        """The parameters of `image_qa` that select the model, its sampling and its limits."""
        return {"endpoint": self.endpoint, "sampling": self.sampling, "limits": self.limits}
