"""`VLLMEndpoint`: where a running vLLM server is, as a Prefect block."""

from typing import ClassVar, Self
from urllib.parse import urlsplit, urlunsplit

from prefect.blocks.core import Block
from prefect.types import SecretDict
from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from .errors import EndpointError


class VLLMEndpoint(Block):
    """One or more vLLM OpenAI-compatible servers that serve the same model.

    Example:
        ```python
        VLLMEndpoint(urls=["http://gpu-1:8000"], model="Qwen/Qwen2.5-VL-3B-Instruct").save("qwen")
        image_qa(dataset="qas.json", output="s3://bucket/qa", endpoint="qwen")
        ```
    """

    # A URL that is refused may hold a password.
    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name: ClassVar[str | None] = "vLLM Endpoint"
    _block_type_slug: ClassVar[str | None] = "vllm-endpoint"
    _description: ClassVar[str | None] = (
        "One or more vLLM OpenAI-compatible servers that serve the same model."
    )

    urls: list[str] = Field(
        min_length=1,
        title="URLs",
        description="Base URLs of the servers, with or without /v1: http://gpu-1:8000",
    )
    model: str | None = Field(
        default=None,
        description="Name the model is served under. Not needed where a server has only one.",
    )
    api_key: SecretStr = Field(
        default=SecretStr(""), title="API key", description="Sent as a bearer token if not empty."
    )
    extra_headers: SecretDict = Field(
        default=SecretDict({}), description="Further HTTP headers, for a gateway before vLLM."
    )
    connect_timeout: float = Field(default=10, gt=0, description="Seconds to open a connection.")
    read_timeout: float = Field(
        default=600, gt=0, description="Seconds without a byte before a request is given up."
    )
    total_timeout: float = Field(
        default=1800, gt=0, description="Seconds a request may take in all, queueing included."
    )

    @field_validator("urls")
    @classmethod
    def _check_urls(cls, urls: list[str]) -> list[str]:
        for url in urls:
            try:
                parts = urlsplit(url)
                complete = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
            except ValueError:  # its text may hold the password
                complete = False
            if not complete:
                raise ValueError(f"{safe_url(url)!r} is not an http:// or https:// URL")
            if "@" in parts.netloc or parts.query or parts.fragment:
                raise ValueError(
                    f"{safe_url(url)!r} must be given without user, query and fragment: "
                    "api_key and extra_headers are kept secret, a URL is not"
                )
        return urls

    @model_validator(mode="after")
    def _check_headers(self) -> Self:
        for name, value in self.headers().items():
            if not f"{name}{value}".isprintable():
                raise ValueError(f"the {name!r} header has a line break or control character")
        return self

    def api_urls(self) -> list[str]:
        """The URLs of the OpenAI API: each ends with `/v1`."""
        trimmed = [url.rstrip("/") for url in self.urls]
        return [url if url.endswith("/v1") else f"{url}/v1" for url in trimmed]

    def headers(self) -> dict[str, str]:
        """HTTP headers of every request, the key among them. Never log them."""
        headers = {
            str(name): str(value) for name, value in self.extra_headers.get_secret_value().items()
        }
        if key := self.api_key.get_secret_value().strip():
            headers["Authorization"] = f"Bearer {key}"
        return headers


def safe_url(url: str) -> str:
    """The URL without user, password, query and fragment: fit for messages."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(malformed)"
    host = parts.netloc.rpartition("@")[2]
    path = parts.path if host else parts.path.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, path, "", ""))


def load_endpoint(spec: str | list[str] | VLLMEndpoint, model: str | None = None) -> VLLMEndpoint:
    """Turn what a user names into an endpoint.

    Args:
        spec: a URL, several URLs, the name of a saved `VLLMEndpoint` block, or a block.
        model: served model name; overrides the block's own.

    Raises:
        EndpointError: a URL is malformed, or no block has that name.
    """
    if isinstance(spec, VLLMEndpoint):
        endpoint = spec
    elif isinstance(spec, str) and "://" not in spec:
        endpoint = _load_block(spec)
    else:
        urls = [spec] if isinstance(spec, str) else spec
        try:
            endpoint = VLLMEndpoint(urls=urls)
        except ValueError as error:
            raise EndpointError(f"endpoint: {_first_line(error)}") from None
    return endpoint.model_copy(update={"model": model}) if model else endpoint


def _load_block(name: str) -> VLLMEndpoint:
    try:
        block = VLLMEndpoint.load(name)
    except ValueError:
        raise EndpointError(
            f"there is no {VLLMEndpoint._block_type_name} block named {name!r}: save one in "
            "Prefect under Blocks, or give a URL such as http://127.0.0.1:8000"
        ) from None
    if not isinstance(block, VLLMEndpoint):  # Block.load may hand out an awaitable in async code
        raise EndpointError(f"block {name!r} could not be loaded; load it first and pass the block")
    return block


def _first_line(error: ValueError) -> str:
    """What pydantic says of the first wrong value, without its frame."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    return str(errors()[0]["msg"]).removeprefix("Value error, ")
