"""`VLLMEndpoint`: the address of running vLLM servers, as a Prefect block."""

import re
from importlib import import_module
from typing import Any, ClassVar, Self, TypeVar, cast
from urllib.parse import SplitResult, urlsplit, urlunsplit

from prefect.blocks.core import Block
from prefect.types import SecretDict
from pydantic import ConfigDict, Field, HttpUrl, SecretStr, field_validator, model_validator

from .errors import EndpointError, ImageQAError
from .sync_block import SyncBlock

B = TypeVar("B", bound=Block)


class VLLMEndpoint(SyncBlock, Block):
    """One or more vLLM OpenAI-compatible servers that serve the same model.

    Example:
        ```python
        from prefect_imageqa import VLLMEndpoint, image_qa

        endpoint = VLLMEndpoint.load("BLOCK_NAME")
        print("the model is", endpoint.check())
        image_qa("qas.json", "s3://bucket/qa", endpoint=endpoint)
        ```
    """

    # A rejected URL may contain a password.
    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name: ClassVar[str | None] = "vLLM Endpoint"
    _block_type_slug: ClassVar[str | None] = "vllm-endpoint"
    _documentation_url: ClassVar[HttpUrl | None] = HttpUrl(
        "https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html"
    )
    _description: ClassVar[str | None] = (
        "The vLLM servers that an image-qa run uses: their URLs, the model's name, the API key. "
        "Pass the name of this block to a run as its endpoint."
    )

    urls: list[str] = Field(
        min_length=1,
        title="URLs",
        description='JSON list of the servers\' URLs, such as `["http://gpu-1:8000"]`; `/v1` and '
        "`/v1/chat/completions` at the end make no difference.",
    )
    model: str | None = Field(
        default=None,
        description="Name the model is served under. Optional if a server has only one model.",
    )
    api_key: SecretStr = Field(
        default=SecretStr(""),
        title="API key",
        description="Sent as a bearer token unless empty. Once saved, it is not shown again.",
    )
    extra_headers: SecretDict = Field(
        default=SecretDict({}),
        description="Additional HTTP headers for a gateway in front of vLLM, such as "
        '`{"X-Tenant": "a"}`. '
        "Once saved, their values are not shown again.",
    )
    connect_timeout: float = Field(default=10, gt=0, description="Seconds to open a connection.")

    @field_validator("urls")
    @classmethod
    def _check_urls(cls, urls: list[str]) -> list[str]:
        for url in urls:
            parts = http_url(url)
            if parts is None:
                raise ValueError(f"{safe_url(url)!r} is not an http:// or https:// URL")
            if may_hold_secrets(parts):
                raise ValueError(
                    f"{safe_url(url)!r}: a URL must not contain a user, query or fragment, because "
                    "it is not stored as a secret; use api_key or extra_headers"
                )
        return urls

    @model_validator(mode="after")
    def _check_headers(self) -> Self:
        for name, value in self.headers().items():
            if not f"{name}{value}".isprintable():
                raise ValueError(f"the {name!r} header has a line break or control character")
        return self

    def api_urls(self) -> list[str]:
        """The URLs of the OpenAI API, without doubles: each ends with `/v1`, as a rule.

        A URL may be the server's, that of its API, or that of one of its methods, such as
        `/v1/chat/completions`. In front of such a method, any path is taken as it is.
        """
        return list(dict.fromkeys(map(_api_url, self.urls)))

    def check(self) -> str:
        """Ask the servers which models they serve; returns the name of the model to use.

        Raises:
            EndpointError: no server answers, or one rejects the key or does not serve the model.
        """
        # By name: the client is built on this module, and not the other way round.
        client = import_module(".client", __package__).ChatClient(self)
        with client:
            return str(client.check())

    def headers(self) -> dict[str, str]:
        """HTTP headers of every request, including the API key. Never log them."""
        headers = {
            str(name): str(value) for name, value in self.extra_headers.get_secret_value().items()
        }
        if key := self.api_key.get_secret_value().strip():
            headers["Authorization"] = f"Bearer {key}"
        return headers


_METHOD = re.compile(r"/+(?:chat/+completions|completions|models)/*$")
_VERSION = re.compile(r"/v\d+$")


def _api_url(url: str) -> str:
    base = url.strip().rstrip("/")
    api = _METHOD.sub("", base).rstrip("/")
    is_complete = api != base and urlsplit(api).path
    return api if is_complete or _VERSION.search(api) else f"{api}/v1"


def http_url(url: str) -> SplitResult | None:
    """The parts of a complete `http://` or `https://` URL; None for anything else."""
    try:
        parts = urlsplit(url)
        complete = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # not chained or logged: its text may contain the password
        return None
    return parts if complete else None


def may_hold_secrets(parts: SplitResult) -> bool:
    """Whether a URL has a user, query or fragment: each may contain a secret."""
    return bool("@" in parts.netloc or parts.query or parts.fragment)


def safe_url(url: str) -> str:
    """The URL without user, password, query and fragment, safe to log."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(malformed)"
    host = parts.netloc.rpartition("@")[2]
    path = parts.path if host else parts.path.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, path, "", ""))


def is_block_name(spec: str) -> bool:
    """Whether an endpoint can be the name of a block; else it is a URL, or was meant as one."""
    return not re.search(r"[:/]", spec)


def load_endpoint(spec: str | list[str] | VLLMEndpoint, model: str | None = None) -> VLLMEndpoint:
    """Turn a URL, several URLs, the name of a saved block, or a block into an endpoint.

    A `model` overrides the block's own.

    Raises:
        EndpointError: a URL is malformed, or no block has that name.
    """
    if isinstance(spec, VLLMEndpoint):
        endpoint = spec
    elif isinstance(spec, str) and is_block_name(spec):
        endpoint = load_block(
            VLLMEndpoint, spec, EndpointError, "use a URL such as http://127.0.0.1:8000, or "
        )
    else:
        urls = [spec] if isinstance(spec, str) else spec
        try:
            endpoint = VLLMEndpoint(urls=urls)
        except ValueError as error:
            raise EndpointError(f"endpoint: {_first_error(error)}") from None
    return endpoint.model_copy(update={"model": model}) if model else endpoint


def find_block(kind: type[B], name: str, error: type[ImageQAError]) -> B | None:
    """The saved block of that name, if there is one; raises `error` if it is invalid."""
    try:
        return cast("B", cast("Any", kind).load(name, _sync=True))
    except ValueError:
        return None
    except RuntimeError as failed:
        # Prefect's UI saves anything its form allows, including values that fail validation.
        if not isinstance(cause := failed.__cause__, ValueError):
            raise
        raise error(
            f"the {kind._block_type_name} block {name!r} is invalid: "
            f"{_first_error(cause)}; correct it in Prefect under Blocks"
        ) from None


def load_block(kind: type[B], name: str, error: type[ImageQAError], alternative: str = "") -> B:
    """The saved block of that name.

    Args:
        kind: its block type.
        name: its name.
        error: raised if there is no such block, or it is invalid.
        alternative: added to that message, before the advice to save a block.
    """
    block = find_block(kind, name, error)
    if block is None:
        shown = name.rpartition("@")[2]  # it may be a URL with a password, without its scheme
        raise error(
            f"there is no {kind._block_type_name} block named {shown!r}: {alternative}save a block "
            "in Prefect under Blocks (`prefect block register -m prefect_imageqa` lists its type "
            "there)"
        )
    return block


def _first_error(error: ValueError) -> str:
    """Pydantic's message about the first invalid value, without the text around it."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    return str(errors()[0]["msg"]).removeprefix("Value error, ")
