import asyncio
import gzip
import socket
import ssl
import threading
import time
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote

import aiohttp
import pytest
import tenacity
from aiohttp.client_reqrep import ConnectionKey
from prefect_imageqa.serving.client.responses import retry_after_seconds
from prefect_imageqa.tasks.images import skipped_hosts
from prefect_imageqa.tasks.images import web as web_images
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.images.skipped_hosts import MAX_SLOW_IMAGES
from prefect_imageqa.tasks.images.web import (
    MAX_ATTEMPTS,
    MAX_REQUESTS_PER_HOST,
    WebImages,
)
from prefect_imageqa.tasks.images.web_addresses import (
    CheckedResolver,
    RefusedAddressError,
    is_allowed_address,
    parse_image_url,
    redirect_target,
)
from prefect_imageqa.tasks.images.web_errors import request_error
from prefect_imageqa.tasks.records import ImageRef, Kind, RowError
from yarl import URL

LIMIT = 1000
IMAGE = b"not decoded here"
PUBLIC, OTHER_PUBLIC = "93.184.216.34", "93.184.216.35"


@dataclass(frozen=True)
class Reply:
    """How the site responds.

    `head` is the status for HEAD requests if it differs; `delay` is in seconds, before the reply
    starts; `times` repeats the body, with a `pause` in seconds after each.
    """

    body: bytes = IMAGE
    status: int = 200
    head: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0
    times: int = 1
    pause: float = 0


@dataclass
class Site:
    """Pages and recorded requests of one test; the last reply of a page repeats."""

    url: str
    pages: dict[str, list[Reply]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    active: int = 0
    max_active: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    released: threading.Event = field(default_factory=threading.Event)
    """Ends all delays."""

    def put(self, path: str, *replies: Reply) -> str:
        self.pages[path] = list(replies)
        return f"{self.url}{path}"


class SiteServer(ThreadingHTTPServer):
    """A web server on loopback that all tests share; each replaces its `site`."""

    daemon_threads = True
    request_queue_size = 64
    site: Site

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that disconnects is not an error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SiteServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._reply(body=False)

    def do_GET(self) -> None:
        self._reply(body=True)

    def _reply(self, body: bool) -> None:
        site, path = self.server.site, unquote(self.path.partition("?")[0])
        with site.lock:
            site.requests.append(f"{self.command} {path}")
            site.headers.append(dict(self.headers))
            replies = site.pages[path]
            reply = replies.pop(0) if len(replies) > 1 else replies[0]
            site.active += 1
            site.max_active = max(site.max_active, site.active)
        if reply.delay:
            site.released.wait(reply.delay)
        with site.lock:
            site.active -= 1
        self.send_response(reply.status if body else reply.head or reply.status)
        headers = {"Content-Length": str(len(reply.body)), **reply.headers}
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        for _ in range(reply.times if body else 0):
            self.wfile.write(reply.body)
            if reply.pause:
                site.released.wait(reply.pause)


@pytest.fixture(scope="module")
def server() -> Iterator[SiteServer]:
    with SiteServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def site(server: SiteServer) -> Iterator[Site]:
    server.site = Site(f"http://127.0.0.1:{server.server_port}")
    yield server.site
    server.site.released.set()


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects the methods of requests that are sent, including those that reach no server."""
    methods: list[str] = []
    send = WebImages._send

    async def count_and_send(self: WebImages, method: str, *options: Any) -> Any:
        methods.append(method)
        return await send(self, method, *options)

    monkeypatch.setattr(WebImages, "_send", count_and_send)
    return methods


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_images, "_BACKOFF", tenacity.wait_none())


@pytest.fixture
def local() -> Iterator[WebImages]:
    """A client that may fetch from the site, which is on loopback."""
    client = WebImages(LIMIT, allow_private_hosts=True)
    yield client
    client.close()


@pytest.fixture
def public() -> Iterator[WebImages]:
    client = WebImages(LIMIT)
    yield client
    client.close()


@dataclass
class Internet:
    """A fake internet: `names` is the DNS, and connections to public addresses reach the site."""

    names: dict[str, list[list[str]]] = field(default_factory=dict)
    connected: list[str] = field(default_factory=list)


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch, site: Site) -> Internet:
    fake = Internet()
    connect = BaseSelectorEventLoop.sock_connect

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        results = fake.names.get(host)
        if results is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        addresses = results.pop(0) if len(results) > 1 else results[0]
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    async def sock_connect(
        loop: BaseSelectorEventLoop, sock: socket.socket, address: tuple[str, int]
    ) -> None:
        fake.connected.append(address[0])
        if ip_address(address[0]).is_global:
            address = ("127.0.0.1", port_of(site))
        await connect(loop, sock, address)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(BaseSelectorEventLoop, "sock_connect", sock_connect)
    return fake


def port_of(site: Site) -> int:
    return int(site.url.rpartition(":")[2])


def problem_of(action: Callable[[str], object], url: str) -> RowError:
    with pytest.raises(RowError) as caught:
        action(url)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    assert "SECRET" not in message
    return caught.value


def test_an_image_is_read(site: Site, local: WebImages) -> None:
    url = site.put("/a b.png", Reply(headers={"Set-Cookie": "a=b"}))
    assert local.read(f"{url}?key=SECRET#top") == IMAGE
    assert local.read(url) == IMAGE
    assert [name for name in site.headers[1] if name.lower() in {"cookie", "authorization"}] == []
    assert site.headers[1]["Accept-Encoding"] == "identity"
    assert site.headers[1]["User-Agent"].startswith("prefect-imageqa/")


def test_an_image_is_identified_by_its_etag(site: Site, local: WebImages) -> None:
    url = site.put("/a.png", Reply(headers={"ETag": 'W/"1"'}))
    identity = local.identify(f"{url}?key=SECRET")
    assert identity.startswith(f'etag:W/"1":{len(IMAGE)}:')
    assert local.identify(f"{url}?key=SECRET#top") == identity
    assert "SECRET" not in identity
    assert local.identify(f"{url}?key=other") != identity
    site.put("/a.png", Reply(headers={"ETag": 'W/"2"'}))
    assert local.identify(f"{url}?key=SECRET") != identity
    assert set(site.requests) == {"HEAD /a.png"}


@pytest.mark.parametrize(
    "reply",
    [Reply(), *(Reply(head=status) for status in (401, 403, 404, 405, 501))],
    ids=["no ETag", "401", "403", "404", "405", "501"],
)
def test_without_an_etag_an_image_is_identified_by_its_url(
    reply: Reply, site: Site, local: WebImages
) -> None:
    url = site.put("/a.png", reply)
    other = site.put("/b.png", reply)
    assert local.identify(url).startswith("url:")
    assert local.identify(url) == local.identify(url) != local.identify(other)
    assert local.read(url) == IMAGE


def test_a_signed_redirect_does_not_change_the_identity(site: Site, local: WebImages) -> None:
    site.put("/b.png", Reply(headers={"ETag": '"1"'}))
    first = site.put("/a", Reply(b"", 302, headers={"Location": "b.png?signed=1"}))
    before = local.identify(first)
    site.put("/a", Reply(b"", 302, headers={"Location": "b.png?signed=2"}))
    assert local.identify(first) == before
    assert before.startswith('etag:"1"')


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 418, 304, 302])
def test_a_permanent_error_status_is_not_retried(status: int, site: Site, local: WebImages) -> None:
    error = problem_of(local.read, site.put("/a.png", Reply(b"", status)) + "?key=SECRET")
    assert error.problem.kind is Kind.IMAGE_MISSING
    assert str(error) == f"{site.url}/a.png: HTTP status {status}"
    assert len(site.requests) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_transient_error_status_is_retried(status: int, site: Site, local: WebImages) -> None:
    fails = Reply(status=status)
    assert local.read(site.put("/a.png", fails, fails, Reply())) == IMAGE
    assert local.identify(site.put("/b.png", fails, Reply(headers={"ETag": "1"}))) != ""
    for method in (local.read, local.identify):
        site.requests.clear()
        error = problem_of(method, site.put("/c.png", fails) + "?key=SECRET")
        assert error.problem.kind is Kind.CONNECTION
        assert len(site.requests) == MAX_ATTEMPTS


def test_a_server_can_ask_to_wait_before_the_retry(
    site: Site, local: WebImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    wait = web_images._wait

    def note_and_skip(state: tenacity.RetryCallState) -> float:
        waits.append(wait(state))
        return 0

    monkeypatch.setattr(web_images, "_wait", note_and_skip)
    busy = [Reply(status=429, headers={"Retry-After": value}) for value in ("7", "3600")]
    assert local.read(site.put("/a.png", *busy, Reply())) == IMAGE
    assert waits == [7, web_images.MAX_RETRY_WAIT]


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("", 0, 0),
        ("7", 7, 7),
        ("9" * 400, 30, 1e10),
        ("soon", 0, 0),
        ("-5", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", -1e10, 0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 30, 1e10),
        ("Wed, 21 Oct 2099 07:28:00 -0000", 0, 0),
    ],
)
def test_retry_after(value: str, low: float, high: float) -> None:
    assert low <= retry_after_seconds(value) <= high


def test_a_truncated_image_is_an_error(site: Site, local: WebImages) -> None:
    truncated = Reply(headers={"Content-Length": "500", "Connection": "close"})
    error = problem_of(local.read, site.put("/a.png", truncated))
    assert error.problem.kind is Kind.CONNECTION
    assert len(site.requests) == MAX_ATTEMPTS


def test_a_silent_server_times_out(
    site: Site, local: WebImages, attempts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_images, "TOTAL_SECONDS", 0.1)
    url = site.put("/a.png", Reply(delay=60))
    for method in (local.read, local.identify):
        assert problem_of(method, url).problem.kind is Kind.TIMEOUT
    assert attempts == ["GET", "HEAD"]  # the time for retries is over


def test_redirects_share_the_timeout_of_one_image(
    site: Site, local: WebImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_images, "TOTAL_SECONDS", 0.5)
    monkeypatch.setattr(web_images, "MAX_ATTEMPTS", 1)
    url = site.put("/a", Reply(b"", 302, headers={"Location": "/a"}, delay=0.2))
    assert problem_of(local.read, url).problem.kind is Kind.TIMEOUT
    assert len(site.requests) <= 3


@pytest.mark.parametrize(
    "reply",
    [
        Reply(b"", headers={"Content-Length": str(LIMIT + 1)}),
        Reply(b"x" * (LIMIT + 1)),
        Reply(b"x" * 5, headers={"Content-Length": "", "Connection": "close"}, times=LIMIT),
        Reply(
            b"5\r\nxxxxx\r\n",
            headers={"Content-Length": "", "Transfer-Encoding": "chunked"},
            times=1_000_000,
        ),
    ],
    ids=["declared", "declared and sent", "until it closes", "chunked"],
)
def test_a_too_large_image_is_not_fetched(reply: Reply, site: Site, local: WebImages) -> None:
    url = site.put("/a.png", reply) + "?key=SECRET"
    error = problem_of(local.read, url)
    assert error.problem.kind is Kind.IMAGE_TOO_LARGE
    assert site.requests == ["GET /a.png"]
    if reply.headers.get("Content-Length") != "":
        assert problem_of(local.identify, url).problem.kind is Kind.IMAGE_TOO_LARGE


def test_an_image_of_the_maximum_size_is_read(site: Site, local: WebImages) -> None:
    assert len(local.read(site.put("/a.png", Reply(b"x" * LIMIT)))) == LIMIT


def test_only_as_much_as_asked_for_is_read(site: Site, local: WebImages) -> None:
    url = site.put("/a.png", Reply(b"x" * 50))
    assert local.read_up_to(url, 49) is None
    assert local.read_up_to(url, 50) == b"x" * 50


def test_nothing_is_decompressed(site: Site, local: WebImages) -> None:
    bomb = gzip.compress(b"\0" * 100_000)
    url = site.put("/a.png", Reply(bomb, headers={"Content-Encoding": "gzip"}))
    assert local.read(url) == bomb


def test_redirects_are_followed_up_to_a_limit(site: Site, local: WebImages) -> None:
    site.put("/5", Reply())
    for number in range(5):
        site.put(f"/{number}", Reply(b"", 302, headers={"Location": f"{number + 1}"}))
    assert local.read(f"{site.url}/0") == IMAGE
    start = site.put("/start", Reply(b"", 307, headers={"Location": "/0?key=SECRET"}))
    error = problem_of(local.read, start)
    assert error.problem.kind is Kind.IMAGE_MISSING
    assert str(error) == f"{site.url}/start: over 5 redirects"


@pytest.mark.parametrize(
    ("location", "kind"),
    [
        ("file:///etc/passwd", Kind.IMAGE_REFUSED),
        ("ftp://host/a.png", Kind.IMAGE_REFUSED),
        ("data:image/png;base64,AAAA", Kind.IMAGE_REFUSED),
        ("http://user:SECRET@127.0.0.1/", Kind.IMAGE_REFUSED),
        ("http://[::1", Kind.IMAGE_MISSING),
        ("http://@]", Kind.IMAGE_MISSING),
        ("http://host:port/", Kind.IMAGE_MISSING),
        ("http://169.254.169.254/latest/meta-data/", Kind.IMAGE_REFUSED),
        ("//0xa9.0xfe.0xa9.0xfe/", Kind.IMAGE_REFUSED),
    ],
)
def test_a_redirect_to_a_forbidden_url_is_not_followed(
    location: str, kind: Kind, site: Site, local: WebImages
) -> None:
    url = site.put("/a", Reply(b"", 302, headers={"Location": location}))
    for method in (local.read, local.identify):
        assert problem_of(method, url).problem.kind is kind
    assert len(site.requests) == 2


def test_a_redirect_from_https_to_http_is_not_followed() -> None:
    assert redirect_target(URL("http://a/b"), "https://c/d") == URL("https://c/d")
    assert redirect_target(URL("https://a/b"), "d?e#f") == URL("https://a/d?e")
    with pytest.raises(RowError, match="from https:// to http:// is not followed"):
        redirect_target(URL("https://a/b"), "http://a/b")


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://user:SECRET@host/a.png", Kind.IMAGE_REFUSED),
        ("http://SECRET@host/a.png", Kind.IMAGE_REFUSED),
        ("http://:SECRET@host/a.png", Kind.IMAGE_REFUSED),
        ("http://host:0/a.png?key=SECRET", Kind.BAD_ROW),
        ("http://host:99999/a.png", Kind.BAD_ROW),
        ("http:///a.png", Kind.BAD_ROW),
        ("http:host/a.png", Kind.BAD_ROW),
        ("http://[::1", Kind.BAD_ROW),
        ("http://user:SECRET@[::1", Kind.BAD_ROW),
        ("http://SECRET@]", Kind.BAD_ROW),
        ("http://[]", Kind.BAD_ROW),
        ("http://host\\@127.0.0.1/\x1b[2J", Kind.BAD_ROW),
        (f"http://host/{'x' * 9000}", Kind.BAD_ROW),
        ("ftp://host/a.png", Kind.BAD_ROW),
    ],
)
def test_an_unusable_url_is_refused(url: str, kind: Kind) -> None:
    error = problem_of(parse_image_url, url)
    assert error.problem.kind is kind
    assert str(error).isprintable()


PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",  # noqa: S104
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "100.100.100.200",
    "169.254.169.254",
    "168.63.129.16",
    "192.0.0.192",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "2001:db8::1",
    "fc00::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "::1%1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_and_reserved_addresses_are_not_allowed(address: str) -> None:
    assert not is_allowed_address(ip_address(address), allow_private=False)


@pytest.mark.parametrize(
    "address",
    [
        "93.184.216.34",
        "8.8.8.8",
        "100.128.0.1",
        "2606:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
    ],
)
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_allowed_address(ip_address(address), allow_private=False)
    assert is_allowed_address(ip_address(address), allow_private=True)


def test_private_hosts_can_be_allowed_but_not_metadata_services() -> None:
    allowed = {address for address in PRIVATE if is_allowed_address(ip_address(address), True)}
    assert allowed == {
        "127.0.0.1",
        "127.8.8.8",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "::1",
        "::1%1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::127.0.0.1",
        "fc00::1",
    }


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "127.1.",
        "0x7f.1",
        "0177.0.0.1",
        "2130706433",
        "0x7f000001",
        "①②⑦.0.0.1",
        "127。0。0。1",
        "169.254.169.254",
        "10.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[fd00:ec2::254]",
        "[fe80::1%25lo]",
    ],
)
def test_a_private_address_in_a_url_is_refused(
    host: str, site: Site, public: WebImages, internet: Internet
) -> None:
    for method in (public.identify, public.read):
        error = problem_of(method, f"http://{host}:{port_of(site)}/a.png?key=SECRET")
        assert error.problem.kind is Kind.IMAGE_REFUSED
    assert (site.requests, internet.connected) == ([], [])


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_that_resolves_to_a_private_address_is_refused(
    address: str, site: Site, public: WebImages, internet: Internet
) -> None:
    internet.names["images.example"] = [[address.partition("%")[0]]]
    for method in (public.identify, public.read):
        error = problem_of(method, "http://images.example/a.png?key=SECRET")
        assert error.problem.kind is Kind.IMAGE_REFUSED
        assert "images.example is at a private or reserved address" in str(error)
    assert (site.requests, internet.connected) == ([], [])


def test_a_redirect_from_a_public_to_a_private_host_is_refused(
    site: Site, public: WebImages, internet: Internet
) -> None:
    internet.names = {"images.example": [[PUBLIC]], "inside.example": [["10.0.0.1"]]}
    site.put("/a.png", Reply())
    assert public.read("http://images.example/a.png") == IMAGE
    for target in ("//inside.example/", "//127.0.0.1/", "//[::ffff:10.0.0.1]/", "//2130706433/"):
        site.put("/to", Reply(b"", 302, headers={"Location": target}))
        error = problem_of(public.read, "http://images.example/to")
        assert error.problem.kind is Kind.IMAGE_REFUSED
    assert set(internet.connected) == {PUBLIC}


def test_only_the_public_addresses_of_a_name_are_used(
    site: Site, public: WebImages, internet: Internet
) -> None:
    internet.names["images.example"] = [["127.0.0.1", "::1", PUBLIC, "10.0.0.1"]]
    site.put("/a.png", Reply())
    assert public.read("http://images.example/a.png") == IMAGE
    assert internet.connected == [PUBLIC]


def test_a_name_that_changes_to_a_private_address_is_not_used(
    site: Site, public: WebImages, internet: Internet
) -> None:
    """DNS rebinding."""
    internet.names["images.example"] = [[PUBLIC], ["127.0.0.1"]]
    close = {"Connection": "close"}
    site.put("/a.png", Reply(headers=close), Reply(status=503, headers=close), Reply())
    assert public.identify("http://images.example/a.png").startswith("url:")
    assert public.read("http://images.example/a.png") == IMAGE
    assert set(internet.connected) == {PUBLIC}

    async def resolve_again() -> None:
        with pytest.raises(RefusedAddressError):
            await CheckedResolver(allow_private=False).resolve("images.example", 80)

    asyncio.run(resolve_again())


def test_names_may_resolve_to_private_addresses_if_allowed(site: Site, internet: Internet) -> None:
    internet.names = {"inside.example": [["127.0.0.1"]], "cloud.example": [["169.254.169.254"]]}
    url = site.put("/a.png", Reply()).replace("127.0.0.1", "inside.example")
    with ImageReader(LIMIT, allow_private_hosts=True) as reader:
        assert reader.read(ImageRef(path=url)) == IMAGE
        assert reader.identify(ImageRef(path=url)).startswith("url:")
        with pytest.raises(RowError) as caught:
            reader.read(ImageRef(path="http://cloud.example/"))
    assert caught.value.problem.kind is Kind.IMAGE_REFUSED


def test_a_reader_refuses_private_hosts_by_default(site: Site) -> None:
    ref = ImageRef(path=site.put("/a.png", Reply()))
    with ImageReader(LIMIT) as reader:
        for method in (reader.read, reader.identify):
            with pytest.raises(RowError) as caught:
                method(ref)
            assert caught.value.problem.kind is Kind.IMAGE_REFUSED
    assert site.requests == []


def test_an_unreachable_host_is_skipped_for_a_while(
    site: Site, local: WebImages, internet: Internet
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    error = problem_of(local.identify, f"{closed}/a.png?key=SECRET")
    assert error.problem.kind is Kind.CONNECTION
    assert len(internet.connected) == MAX_ATTEMPTS
    error = problem_of(local.read, f"{closed}/b.png")
    assert error.problem.kind is Kind.CONNECTION
    assert len(internet.connected) == MAX_ATTEMPTS
    assert local.read(site.put("/a.png", Reply())) == IMAGE


def test_an_unknown_host_name_is_a_transient_error(public: WebImages, internet: Internet) -> None:
    error = problem_of(public.identify, "http://nowhere.example/a.png?key=SECRET")
    assert error.problem.kind is Kind.CONNECTION


@pytest.mark.parametrize("host", ["a..b", f"{'a' * 64}.example", "a%00b", "a b", "*.a"])
def test_an_invalid_host_name_fails_only_its_row(host: str, public: WebImages) -> None:
    for method in (public.identify, public.read):
        error = problem_of(method, f"http://{host}/a.png?key=SECRET")
        assert error.problem.kind in {Kind.BAD_ROW, Kind.CONNECTION}


def test_an_untrusted_certificate_is_a_transient_error() -> None:
    key = ConnectionKey("host", 443, True, True, None, None, None)
    error = aiohttp.ClientConnectorCertificateError(key, ssl.SSLCertVerificationError())
    problem = request_error(URL("https://host/a.png"), error, 30, answered=False).problem
    assert problem.kind is Kind.CONNECTION
    assert "certificate is not trusted" in problem.message


def test_concurrent_requests_to_a_host_are_limited(site: Site, local: WebImages) -> None:
    url = site.put("/a.png", Reply(delay=60))
    with ThreadPoolExecutor(16) as pool:
        reading = [pool.submit(local.read, url) for _ in range(16)]
        while site.active < MAX_REQUESTS_PER_HOST:
            time.sleep(0.01)
        time.sleep(0.1)  # for a request over the limit to arrive
        site.released.set()
        assert [future.result() for future in reading] == [IMAGE] * 16
    assert site.max_active == MAX_REQUESTS_PER_HOST


def test_redirects_within_a_busy_host_do_not_deadlock(site: Site, local: WebImages) -> None:
    site.put("/b.png", Reply(delay=0.02))
    url = site.put("/a", Reply(b"", 302, headers={"Location": "b.png"}, delay=0.02))
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(local.read, [url] * 16)) == [IMAGE] * 16


def test_closing_the_client_cancels_running_requests(site: Site) -> None:
    client = WebImages(LIMIT, allow_private_hosts=True)
    url = site.put("/a.png", Reply(delay=60))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(problem_of, client.read, url)
        while not site.requests:
            time.sleep(0.01)
        client.close()
        assert future.result(30).problem.kind is Kind.CONNECTION
    assert problem_of(client.read, url).problem.kind is Kind.CONNECTION


def test_proxies_and_credentials_of_the_environment_are_not_used(
    site: Site, local: WebImages, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password SECRET")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert local.read(site.put("/a.png", Reply())) == IMAGE
    assert "Authorization" not in site.headers[0]


def test_a_silent_host_is_skipped_for_a_while(
    site: Site, local: WebImages, attempts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_images, "TOTAL_SECONDS", 0.2)
    monkeypatch.setattr(web_images, "CONNECT_SECONDS", 0.1)
    url = site.put("/a.png", Reply(delay=60))
    assert problem_of(local.read, url).problem.kind is Kind.TIMEOUT
    error = problem_of(local.read, url)
    assert "was unreachable a moment ago" in error.problem.message
    assert len(attempts) == 1


def test_a_host_with_one_silent_url_is_not_skipped(
    site: Site, local: WebImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_images, "TOTAL_SECONDS", 3.0)
    monkeypatch.setattr(web_images, "CONNECT_SECONDS", 2.9)  # less, or no host is ever skipped
    monkeypatch.setattr(web_images, "MAX_ATTEMPTS", 1)
    silent, good = site.put("/silent.png", Reply(delay=60)), site.put("/good.png", Reply())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(problem_of, local.read, silent)
        while not site.requests:
            time.sleep(0.01)
        monkeypatch.setattr(web_images, "TOTAL_SECONDS", 60.0)
        assert local.read(good) == IMAGE
        assert waiting.result().problem.kind is Kind.TIMEOUT
    assert local.read(good) == IMAGE


DRIPPING = Reply(b"x", headers={"Content-Length": str(LIMIT)}, times=LIMIT, pause=0.05)


def test_an_image_that_drips_is_not_asked_for_again_and_its_host_is_skipped(
    site: Site, local: WebImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_images, "TOTAL_SECONDS", 2.0)
    monkeypatch.setattr(skipped_hosts, "MAX_SLOW_IMAGES", 1)
    url, good = site.put("/a.png", DRIPPING), site.put("/good.png", Reply())
    assert problem_of(local.read, url).problem.kind is Kind.TIMEOUT
    for other in (url, good):
        assert "was too slow a moment ago" in problem_of(local.read, other).problem.message
    assert site.requests == ["GET /a.png"]


def test_a_host_that_sends_other_images_in_time_is_not_skipped(
    site: Site, local: WebImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = web_images._body

    async def time_out(response: aiohttp.ClientResponse, limit: int) -> bytes | None:
        if response.url.path == "/a.png":
            raise TimeoutError
        return await body(response, limit)

    monkeypatch.setattr(web_images, "_body", time_out)
    url, good = site.put("/a.png", Reply()), site.put("/good.png", Reply())
    for _ in range(MAX_SLOW_IMAGES):
        assert problem_of(local.read, url).problem.kind is Kind.TIMEOUT
        assert local.read(good) == IMAGE
    for _ in range(MAX_SLOW_IMAGES):
        assert problem_of(local.read, url).problem.kind is Kind.TIMEOUT
    assert "was too slow a moment ago" in problem_of(local.read, good).problem.message
    assert site.requests.count("GET /a.png") == 2 * MAX_SLOW_IMAGES  # none is asked for again
