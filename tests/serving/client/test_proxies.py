"""Which requests go through a proxy, and what is said if it is in the way."""

import pytest
from aiohttp import web
from chat import ask, endpoint, texts
from fake_vllm import FakeVLLM, reply, serving
from prefect_imageqa.serving.client import ChatClient
from prefect_imageqa.serving.client.proxies import proxy_of
from prefect_imageqa.serving.errors import EndpointError, EndpointUnreachableError

PROXY = "http://proxy.invalid:3128"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "request_method"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        ("http://gpu:8000/v1", {}, None),
        ("http://gpu:8000/v1", {"http_proxy": PROXY}, PROXY),
        ("http://gpu:8000/v1", {"HTTP_PROXY": PROXY}, PROXY),
        ("http://gpu:8000/v1", {"http_proxy": "proxy.invalid:3128"}, PROXY),
        ("http://gpu:8000/v1", {"https_proxy": PROXY}, None),
        ("https://gpu/v1", {"https_proxy": PROXY}, PROXY),
        ("http://gpu:8000/v1", {"all_proxy": PROXY}, PROXY),
        ("http://gpu:8000/v1", {"all_proxy": "socks5://proxy.invalid:1080"}, None),
        ("http://gpu:8000/v1", {"http_proxy": PROXY, "no_proxy": "a,gpu"}, None),
        ("http://gpu.lab:8000/v1", {"http_proxy": PROXY, "no_proxy": ".lab"}, None),
        ("http://gpu:8000/v1", {"http_proxy": PROXY, "no_proxy": "*"}, None),
        ("http://127.0.0.1:8000/v1", {"http_proxy": PROXY}, None),
        ("http://0.0.0.0:8000/v1", {"http_proxy": PROXY}, None),
        ("http://127.8.8.8/v1", {"http_proxy": PROXY}, None),
        ("http://localhost:8000/v1", {"all_proxy": PROXY}, None),
        ("http://[::1]:8000/v1", {"http_proxy": PROXY}, None),
        ("http://localhost.:8000/v1", {"http_proxy": PROXY}, None),
        ("http://127.1:8000/v1", {"http_proxy": PROXY}, None),
        ("http://0x7f000001/v1", {"http_proxy": PROXY}, None),
        ("http://0:8000/v1", {"http_proxy": PROXY}, None),
        ("http://[::ffff:127.0.0.1]:8000/v1", {"http_proxy": PROXY}, None),
        ("http://[::ffff:10.1.1.1]:8000/v1", {"http_proxy": PROXY}, PROXY),
        ("http://127.gpu:8000/v1", {"http_proxy": PROXY}, PROXY),
        ("http://10.1:8000/v1", {"http_proxy": PROXY}, PROXY),
    ],
)
def test_the_proxy_of_a_url(
    url: str, environment: dict[str, str], proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(url) == proxy


def test_a_server_on_this_machine_is_asked_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", PROXY)
    with FakeVLLM() as server, ChatClient(endpoint(server.url)) as client:
        client.check()
        assert texts(client.complete([ask("hello")])) == ["hello"]


def test_another_server_is_asked_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    async def forward(request: web.Request) -> web.StreamResponse:
        asked.append((str(request.url), request.headers.get("Proxy-Authorization", "")))
        return reply("through")

    with serving(forward) as url:
        monkeypatch.setenv("http_proxy", url.replace("//", "//user:hunter2@"))
        with ChatClient(endpoint("http://gpu.invalid:8000")) as client:
            assert texts(client.complete([ask("hello")])) == ["through"]
    assert asked[0][0] == "http://gpu.invalid:8000/v1/chat/completions"
    assert asked[0][1].startswith("Basic ")


def test_a_proxy_in_the_way_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, dead_url: str
) -> None:
    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.Response(status=403, text="forbidden")

    advice = "to ask it directly, add gpu.invalid to no_proxy)"
    with serving(refuse) as url:
        monkeypatch.setenv("http_proxy", url.replace("//", "//user:hunter2@"))
        with (
            ChatClient(endpoint("http://gpu.invalid:8000")) as client,
            pytest.raises(EndpointError) as refused,
        ):
            client.check()
    assert str(refused.value).endswith(f" (asked through the proxy {url}; {advice}")
    monkeypatch.setenv("http_proxy", dead_url)
    with (
        ChatClient(endpoint("http://gpu.invalid:8000")) as client,
        pytest.raises(EndpointUnreachableError) as unreachable,
    ):
        client.check()
    assert str(unreachable.value).endswith(f" (asked through the proxy {dead_url}; {advice}")
