"""`VLLMEndpoint`: where a running vLLM server is, as a Prefect block."""

from typing import Any, ClassVar, Self, TypeVar, cast
from urllib.parse import SplitResult, urlsplit, urlunsplit

from prefect.blocks.core import Block
from prefect.types import SecretDict
from pydantic import ConfigDict, Field, HttpUrl, SecretStr, field_validator, model_validator

from .errors import EndpointError, ImageQAError

B = TypeVar("B", bound=Block)


class VLLMEndpoint(Block):
    """One or more vLLM OpenAI-compatible servers that serve the same model.

    Example:
        ```python
        from prefect_imageqa import VLLMEndpoint, image_qa

        VLLMEndpoint(urls=["http://gpu-1:8000"]).save("BLOCK_NAME")
        image_qa("qas.json", "s3://bucket/qa", endpoint="BLOCK_NAME")
        ```
    """

    # A URL that is refused may hold a password.
    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name: ClassVar[str | None] = "vLLM Endpoint"
    _block_type_slug: ClassVar[str | None] = "vllm-endpoint"
    _documentation_url: ClassVar[HttpUrl | None] = HttpUrl(
        "https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html"
    )
    _description: ClassVar[str | None] = (
        "The vLLM servers that an image-qa run asks: their URLs, the model's name, the API key. "
        "Give a run the name of this block as its endpoint."
    )

    urls: list[str] = Field(
        min_length=1,
        title="URLs",
        description='JSON list of the servers\' base URLs, such as `["http://gpu-1:8000"]`.',
    )
    model: str | None = Field(
        default=None,
        description="Name the model is served under. Not needed where a server has only one.",
    )
    api_key: SecretStr = Field(
        default=SecretStr(""),
        title="API key",
        description="Sent as a bearer token if not empty. Once saved, it is not shown again.",
    )
    extra_headers: SecretDict = Field(
        default=SecretDict({}),
        description='Further HTTP headers for a gateway before vLLM, such as `{"X-Tenant": "a"}`. '
        "Once saved, their values are not shown again.",
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
            parts = http_url(url)
            if parts is None:
                raise ValueError(f"{safe_url(url)!r} is not an http:// or https:// URL")
            if is_more_than_address(parts):
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


def http_url(url: str) -> SplitResult | None:
    """The parts of a complete `http://` or `https://` URL; None for anything else."""
    try:
        parts = urlsplit(url)
        complete = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # its text may hold the password
        return None
    return parts if complete else None


def is_more_than_address(parts: SplitResult) -> bool:
    """Whether a URL has a user, query or fragment, which may be secret."""
    return bool("@" in parts.netloc or parts.query or parts.fragment)


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
    """Turn a URL, several URLs, the name of a saved block, or a block into an endpoint.

    A `model` overrides the block's own.

    Raises:
        EndpointError: a URL is malformed, or no block has that name.
    """
    if isinstance(spec, VLLMEndpoint):
        endpoint = spec
    elif isinstance(spec, str) and "://" not in spec:
        endpoint = load_block(
            VLLMEndpoint, spec, EndpointError, "give a URL such as http://127.0.0.1:8000, or "
        )
    else:
        urls = [spec] if isinstance(spec, str) else spec
        try:
            endpoint = VLLMEndpoint(urls=urls)
        except ValueError as error:
            raise EndpointError(f"endpoint: {_first_mistake(error)}") from None
    return endpoint.model_copy(update={"model": model}) if model else endpoint


def find_block(kind: type[B], name: str, error: type[ImageQAError]) -> B | None:
    """The saved block of that name, if there is one; raises `error` if it cannot be used."""
    try:
        return cast("B", cast("Any", kind).load(name, _sync=True))
    except ValueError:
        return None
    except RuntimeError as failed:
        # Prefect's UI saves what its form allows, and that is more.
        if not isinstance(cause := failed.__cause__, ValueError):
            raise
        raise error(
            f"the {kind._block_type_name} block {name!r} cannot be used: "
            f"{_first_mistake(cause)}; correct it in Prefect under Blocks"
        ) from None


def load_block(kind: type[B], name: str, error: type[ImageQAError], instead: str = "") -> B:
    """The saved block of that name; raises `error`, with what to do `instead`, if there is none."""
    block = find_block(kind, name, error)
    if block is None:
        shown = name.rpartition("@")[2]  # it may be meant as a URL with a password
        raise error(
            f"there is no {kind._block_type_name} block named {shown!r}: {instead}save a block in "
            "Prefect under Blocks (`prefect block register -m prefect_imageqa` lists its type "
            "there)"
        )
    return block


def _first_mistake(error: ValueError) -> str:
    """What pydantic says of the first wrong value, without its frame."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    return str(errors()[0]["msg"]).removeprefix("Value error, ")
