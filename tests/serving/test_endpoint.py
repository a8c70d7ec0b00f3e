import asyncio
from importlib.metadata import entry_points
from typing import Any

import pytest
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect_imageqa.serving.client import ChatClient
from prefect_imageqa.serving.endpoint import VLLMEndpoint, load_block, load_endpoint, safe_url
from prefect_imageqa.serving.errors import EndpointError
from pydantic import ValidationError

KEY = "sk-secret-0a1b2c"


@pytest.mark.parametrize(
    ("url", "api"),
    [
        ("http://gpu:8000", "http://gpu:8000/v1"),
        ("http://gpu:8000/", "http://gpu:8000/v1"),
        ("http://gpu:8000/v1", "http://gpu:8000/v1"),
        (" http://gpu:8000/v1/\n", "http://gpu:8000/v1"),
        ("http://gpu:8000/v1/chat/completions", "http://gpu:8000/v1"),
        ("http://gpu:8000/v1//chat/completions/", "http://gpu:8000/v1"),
        ("http://gpu:8000/v1/completions", "http://gpu:8000/v1"),
        ("http://gpu:8000/v1/models", "http://gpu:8000/v1"),
        ("http://gpu:8000/chat/completions", "http://gpu:8000/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
        ("https://gate/vllm/a", "https://gate/vllm/a/v1"),
        ("https://gate/vllm/b/v1", "https://gate/vllm/b/v1"),
        ("https://gate/api/v4", "https://gate/api/v4"),
        ("https://gate/v1beta/openai/chat/completions", "https://gate/v1beta/openai"),
        ("https://gate/models/vllm", "https://gate/models/vllm/v1"),
    ],
)
def test_the_url_of_a_server_of_its_api_or_of_a_method(url: str, api: str) -> None:
    assert VLLMEndpoint(urls=[url]).api_urls() == [api]


def test_a_server_given_twice_is_one_server() -> None:
    urls = ["http://gpu:8000", "http://other:8000", "http://gpu:8000/v1/chat/completions"]
    assert VLLMEndpoint(urls=urls).api_urls() == ["http://gpu:8000/v1", "http://other:8000/v1"]


@pytest.mark.parametrize(
    "url",
    [
        "ftp://user:hunter2@host",
        "http://user:hunter2@host:99999",
        "http://user:hunter2@host:port",
        "http://user:hunter2@",
        "http://user:hunter2@[::1",
        "http://user:hunter2℀@host",
        "http://user:hunter2@host",
        "http://host/v1?key=hunter2",
        "http://host/v1#hunter2",
        "user:hunter2@host",
        "http://",
        "",
    ],
)
def test_an_invalid_url_is_rejected_without_showing_its_secrets(url: str) -> None:
    with pytest.raises(ValidationError) as raised:
        VLLMEndpoint(urls=["http://good:8000", url])
    assert "hunter2" not in str(raised.value)
    assert "URL" in str(raised.value)
    with pytest.raises(EndpointError) as rejected:
        load_endpoint([url])
    assert "hunter2" not in str(rejected.value)
    assert "\n" not in str(rejected.value)


def test_at_least_one_url_is_required() -> None:
    with pytest.raises(EndpointError, match="at least 1 item"):
        load_endpoint([])


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("http://user:pw@host:1/v1?k=s#f", "http://host:1/v1"),
        ("https://a@b@host/x", "https://host/x"),
        ("http://host", "http://host"),
        ("http://user:pw@[::1", "(malformed)"),
        ("user:pw@host/v1", "user:host/v1"),
    ],
)
def test_a_safe_url_has_no_credentials(url: str, safe: str) -> None:
    assert safe_url(url) == safe


def test_secrets_are_masked() -> None:
    endpoint = VLLMEndpoint(
        urls=["http://gpu:8000"], api_key=KEY, extra_headers={"X-Token": f"{KEY}-header"}
    )
    for text in (repr(endpoint), str(endpoint), endpoint.model_dump_json()):
        assert "gpu:8000" in text
        assert KEY not in text
    assert endpoint.headers() == {"X-Token": f"{KEY}-header", "Authorization": f"Bearer {KEY}"}


def test_without_a_key_there_is_no_authorization_header() -> None:
    assert VLLMEndpoint(urls=["http://gpu:8000"]).headers() == {}
    assert VLLMEndpoint(urls=["http://gpu:8000"], api_key=" \n").headers() == {}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"api_key": f"{KEY}\r\nX-Admin: 1"}, "Authorization"),
        ({"extra_headers": {"X-Token": f"{KEY}\n"}}, "X-Token"),
    ],
    ids=["key", "header"],
)
def test_a_header_with_a_line_break_is_rejected(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValidationError, match=f"the '{name}' header has a line break") as raised:
        VLLMEndpoint(urls=["http://gpu:8000"], **options)
    assert KEY not in str(raised.value)


def test_a_timeout_must_be_positive() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        VLLMEndpoint(urls=["http://gpu:8000"], connect_timeout=0)


def test_load_endpoint_accepts_urls_and_blocks() -> None:
    block = VLLMEndpoint(urls=["http://a:1", "http://b:2"], model="its own", api_key=KEY)
    assert load_endpoint(block) is block
    assert load_endpoint("http://a:1").urls == ["http://a:1"]
    assert load_endpoint(["http://a:1", "http://b:2"]).urls == ["http://a:1", "http://b:2"]
    assert load_endpoint("http://a:1", model="m").model == "m"
    other = load_endpoint(block, model="another")
    assert (other.model, other.urls, other.headers()) == ("another", block.urls, block.headers())
    assert block.model == "its own"


def test_prefect_finds_the_block_through_the_entry_point() -> None:
    (entry_point,) = entry_points(group="prefect.collections", name="prefect_imageqa")
    module = entry_point.load()
    assert module.VLLMEndpoint is VLLMEndpoint
    assert VLLMEndpoint.get_block_type_slug() == "vllm-endpoint"


@pytest.mark.usefixtures("prefect_server")
def test_a_block_survives_a_round_trip() -> None:
    saved = VLLMEndpoint(
        urls=["http://a:1", "http://b:2/v1"],
        model="m",
        api_key=KEY,
        extra_headers={"X-Token": "t"},
        connect_timeout=7,
    )
    saved.save("round-trip")
    loaded = load_endpoint("round-trip")
    assert isinstance(loaded, VLLMEndpoint)
    for name in VLLMEndpoint.model_fields:
        assert getattr(loaded, name) == getattr(saved, name), name
    assert loaded.headers() == {"X-Token": "t", "Authorization": f"Bearer {KEY}"}
    assert load_endpoint("round-trip", model="another").model == "another"
    assert isinstance(Block.load("vllm-endpoint/round-trip"), VLLMEndpoint)


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("name", ["no-such-block", ""])
def test_a_missing_block_is_one_clear_line(name: str) -> None:
    with pytest.raises(EndpointError) as raised:
        load_endpoint(name)
    assert str(raised.value) == (
        f"there is no vLLM Endpoint block named {name!r}: use a URL such as "
        "http://127.0.0.1:8000, or save a block in Prefect under Blocks "
        "(`prefect block register -m prefect_imageqa` lists its type there)"
    )


@pytest.mark.parametrize("url", ["gpu-1:8000", "http//gpu-1:8000", "a/b"])
def test_a_url_without_its_scheme_is_no_name_of_a_block(url: str) -> None:
    with pytest.raises(EndpointError, match=f"endpoint: '{url}' is not an http:// or https:// URL"):
        load_endpoint(url)


@pytest.mark.usefixtures("prefect_server")
def test_a_block_of_an_unregistered_type_is_missing() -> None:
    class UnregisteredBlock(Block):
        _block_type_name = "Unregistered"

    with pytest.raises(EndpointError, match="`prefect block register -m prefect_imageqa`"):
        load_block(UnregisteredBlock, "qwen", EndpointError)


@pytest.mark.usefixtures("prefect_server")
def test_an_invalid_block_that_the_form_saved_is_one_clear_line() -> None:
    document: Any = VLLMEndpoint(urls=["http://gpu-1:8000"]).save("half-right", overwrite=True)
    with get_client(sync_client=True) as client:
        update = BlockDocumentUpdate(data={"urls": ["me:hunter2@gpu-1:8000"]})
        client.update_block_document(document, update)
    with pytest.raises(EndpointError) as raised:
        load_endpoint("half-right")
    assert str(raised.value) == (
        "the vLLM Endpoint block 'half-right' is invalid: 'me:gpu-1:8000' is not an http:// or "
        "https:// URL; correct it in Prefect under Blocks"
    )


def check(endpoint: VLLMEndpoint) -> str:
    with ChatClient(endpoint) as client:
        return client.check()


@pytest.mark.parametrize("model", [None, "stub"], ids=["any model", "named model"])
def test_a_check_finds_the_model(keyed_stub: Any, model: str | None) -> None:
    endpoint = VLLMEndpoint(urls=[keyed_stub.url], model=model, api_key=keyed_stub.api_key)
    before = keyed_stub.stats()["requests"]
    assert check(endpoint) == "stub"
    assert endpoint.model == model
    assert keyed_stub.stats()["requests"] == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"urls": ["http://127.0.0.1:1"]}, "no server answers at http://127.0.0.1:1/v1 ("),
        ({"api_key": KEY}, "{url}/v1 rejects the API key (HTTP 401)"),
        ({"api_key": ""}, "{url}/v1 wants an API key (HTTP 401), and no key was sent: "),
        ({"model": "gpt-9"}, "{url} does not serve 'gpt-9'; it serves: stub"),
    ],
    ids=["unreachable", "wrong key", "no key", "wrong model"],
)
def test_a_check_reports_an_error_in_one_line(
    options: dict[str, Any], message: str, keyed_stub: Any
) -> None:
    valid = {"urls": [keyed_stub.url], "model": "stub", "api_key": keyed_stub.api_key}
    with pytest.raises(EndpointError) as raised:
        check(VLLMEndpoint(**valid | options))
    assert str(raised.value).startswith(message.format(url=keyed_stub.url))
    assert "\n" not in str(raised.value)
    for key in (KEY, keyed_stub.api_key):
        assert key not in str(raised.value)


@pytest.mark.usefixtures("prefect_server")
def test_a_check_works_in_asynchronous_code(stub: Any) -> None:
    async def check_inside() -> str:
        return check(VLLMEndpoint(urls=[stub.url]))

    assert asyncio.run(check_inside()) == "stub"
