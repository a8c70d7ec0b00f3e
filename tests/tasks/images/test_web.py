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
from prefect_imageqa.tasks.images import web as web_images
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.images.web import ATTEMPTS, PER_HOST, WebImages
from prefect_imageqa.tasks.images.web_addresses import (
    CheckedResolver,
    RefusedAddressError,
    may_connect,
    redirected,
    web_url,
)
from prefect_imageqa.tasks.records import ImageRef, Kind, RowError
from yarl import URL

LIMIT = 1000
PICTURE = b"not looked at here"
PUBLIC, OTHER_PUBLIC = "93.184.216.34", "93.184.216.35"


@dataclass(frozen=True)
class Answer:
    """What the site says: `head` is its status for HEAD; `seconds` it waits before the body."""

    body: bytes = PICTURE
    status: int = 200
    head: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0
    times: int = 1


class Site(ThreadingHTTPServer):
    """A web server on loopback; `pages` says what it answers, several answers in turn."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, list[Answer]] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, path: str, *answers: Answer) -> str:
        self.pages[path] = list(answers)
        return f"{self.url}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is none."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        site, path = self.server, unquote(self.path.partition("?")[0])
        with site.lock:
            site.asked.append(f"{self.command} {path}")
            site.headers.append(dict(self.headers))
            answers = site.pages[path]
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            site.busy += 1
            site.most_busy = max(site.most_busy, site.busy)
        if answer.seconds:
            site.released.wait(answer.seconds)
        with site.lock:
            site.busy -= 1
        self.send_response(answer.status if body else answer.head or answer.status)
        headers = {"Content-Length": str(len(answer.body)), **answer.headers}
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        for _ in range(answer.times if body else 0):
            self.wfile.write(answer.body)


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_images, "_BACKOFF", tenacity.wait_none())


@pytest.fixture
def local() -> Iterator[WebImages]:
    """May fetch from the site, which is on loopback."""
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
    """A fake one: names have the addresses given, and public addresses lead to the site."""

    names: dict[str, list[list[str]]] = field(default_factory=dict)
    connected: list[str] = field(default_factory=list)


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch, site: Site) -> Internet:
    fake = Internet()
    connect = BaseSelectorEventLoop.sock_connect

    def look_up(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        answers = fake.names.get(host)
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in found
        ]

    async def sock_connect(
        loop: BaseSelectorEventLoop, sock: socket.socket, address: tuple[str, int]
    ) -> None:
        fake.connected.append(address[0])
        if ip_address(address[0]).is_global:
            address = ("127.0.0.1", site.server_port)
        await connect(loop, sock, address)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(BaseSelectorEventLoop, "sock_connect", sock_connect)
    return fake


def problem_of(action: Callable[[str], object], url: str) -> RowError:
    with pytest.raises(RowError) as caught:
        action(url)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    assert "SECRET" not in message
    return caught.value


def test_an_image_is_read(site: Site, local: WebImages) -> None:
    url = site.put("/a b.png", Answer(headers={"Set-Cookie": "a=b"}))
    assert local.read(f"{url}?key=SECRET#top") == PICTURE
    assert local.read(url) == PICTURE
    assert [name for name in site.headers[1] if name.lower() in {"cookie", "authorization"}] == []
    assert site.headers[1]["Accept-Encoding"] == "identity"
    assert site.headers[1]["User-Agent"].startswith("prefect-imageqa/")


def test_an_image_is_identified_without_being_fetched(site: Site, local: WebImages) -> None:
    url = site.put("/a.png", Answer(headers={"ETag": 'W/"1"'}))
    identity = local.identify(f"{url}?key=SECRET")
    assert identity.startswith(f'etag:W/"1":{len(PICTURE)}:')
    assert local.identify(f"{url}?key=SECRET#top") == identity
    assert "SECRET" not in identity
    assert local.identify(f"{url}?key=other") != identity
    site.put("/a.png", Answer(headers={"ETag": 'W/"2"'}))
    assert local.identify(f"{url}?key=SECRET") != identity
    assert set(site.asked) == {"HEAD /a.png"}


@pytest.mark.parametrize(
    "answer",
    [Answer(), *(Answer(head=status) for status in (401, 403, 404, 405, 501))],
    ids=["no tag", "401", "403", "404", "405", "501"],
)
def test_without_a_tag_an_image_is_known_by_its_url(
    answer: Answer, site: Site, local: WebImages
) -> None:
    url = site.put("/a.png", answer)
    other = site.put("/b.png", answer)
    assert local.identify(url).startswith("url:")
    assert local.identify(url) == local.identify(url) != local.identify(other)
    assert local.read(url) == PICTURE


def test_the_tag_of_a_redirected_image_is_that_of_its_own_url(site: Site, local: WebImages) -> None:
    site.put("/b.png", Answer(headers={"ETag": '"1"'}))
    first = site.put("/a", Answer(b"", 302, headers={"Location": "b.png?signed=1"}))
    before = local.identify(first)
    site.put("/a", Answer(b"", 302, headers={"Location": "b.png?signed=2"}))
    assert local.identify(first) == before
    assert before.startswith('etag:"1"')


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 418, 304, 302])
def test_what_is_not_there_is_missing_and_not_asked_again(
    status: int, site: Site, local: WebImages
) -> None:
    error = problem_of(local.read, site.put("/a.png", Answer(b"", status)) + "?key=SECRET")
    assert error.problem.kind is Kind.IMAGE_MISSING
    assert str(error) == f"{site.url}/a.png: answers HTTP {status}"
    assert len(site.asked) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again(status: int, site: Site, local: WebImages) -> None:
    fails = Answer(status=status)
    assert local.read(site.put("/a.png", fails, fails, Answer())) == PICTURE
    assert local.identify(site.put("/b.png", fails, Answer(headers={"ETag": "1"}))) != ""
    for use in (local.read, local.identify):
        site.asked.clear()
        error = problem_of(use, site.put("/c.png", fails) + "?key=SECRET")
        assert error.problem.kind is Kind.CONNECTION
        assert len(site.asked) == ATTEMPTS


def test_a_server_may_ask_for_patience(
    site: Site, local: WebImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = site.put("/a.png", Answer(status=429, headers={"Retry-After": "1"}), Answer())
    started = time.monotonic()
    assert local.read(url) == PICTURE
    assert time.monotonic() - started >= 1
    monkeypatch.setattr(web_images, "MAX_WAIT", 0.1)
    url = site.put("/b.png", Answer(status=429, headers={"Retry-After": "3600"}), Answer())
    assert local.read(url) == PICTURE
    assert time.monotonic() - started < 10


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
    assert low <= web_images._retry_after(value) <= high


def test_a_cut_image_is_not_taken_for_a_whole_one(site: Site, local: WebImages) -> None:
    cut = Answer(headers={"Content-Length": "500", "Connection": "close"})
    error = problem_of(local.read, site.put("/a.png", cut))
    assert error.problem.kind is Kind.CONNECTION
    assert len(site.asked) == ATTEMPTS


def test_a_silent_server_costs_its_time(
    site: Site, local: WebImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_images, "TOTAL_SECONDS", 0.2)
    url = site.put("/a.png", Answer(seconds=20))
    for use in (local.read, local.identify):
        assert problem_of(use, url).problem.kind is Kind.TIMEOUT
    assert len(site.asked) == 2 * ATTEMPTS


def test_redirects_share_the_time_of_one_image(
    site: Site, local: WebImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_images, "TOTAL_SECONDS", 0.5)
    monkeypatch.setattr(web_images, "ATTEMPTS", 1)
    url = site.put("/a", Answer(b"", 302, headers={"Location": "/a"}, seconds=0.2))
    assert problem_of(local.read, url).problem.kind is Kind.TIMEOUT
    assert len(site.asked) <= 3


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"", headers={"Content-Length": str(LIMIT + 1)}),
        Answer(b"x" * (LIMIT + 1)),
        Answer(b"x" * 5, headers={"Content-Length": "", "Connection": "close"}, times=LIMIT),
        Answer(
            b"5\r\nxxxxx\r\n",
            headers={"Content-Length": "", "Transfer-Encoding": "chunked"},
            times=1_000_000,
        ),
    ],
    ids=["declared", "declared and sent", "until it closes", "chunked"],
)
def test_what_is_too_large_is_not_fetched(answer: Answer, site: Site, local: WebImages) -> None:
    url = site.put("/a.png", answer) + "?key=SECRET"
    error = problem_of(local.read, url)
    assert error.problem.kind is Kind.IMAGE_TOO_LARGE
    assert site.asked == ["GET /a.png"]
    if answer.headers.get("Content-Length") != "":
        assert problem_of(local.identify, url).problem.kind is Kind.IMAGE_TOO_LARGE


def test_as_much_as_is_allowed_is_read(site: Site, local: WebImages) -> None:
    assert len(local.read(site.put("/a.png", Answer(b"x" * LIMIT)))) == LIMIT


def test_nothing_is_decompressed(site: Site, local: WebImages) -> None:
    bomb = gzip.compress(b"\0" * 100_000)
    url = site.put("/a.png", Answer(bomb, headers={"Content-Encoding": "gzip"}))
    assert local.read(url) == bomb


def test_redirects_are_followed_for_a_while(site: Site, local: WebImages) -> None:
    site.put("/5", Answer())
    for number in range(5):
        site.put(f"/{number}", Answer(b"", 302, headers={"Location": f"{number + 1}"}))
    assert local.read(f"{site.url}/0") == PICTURE
    start = site.put("/start", Answer(b"", 307, headers={"Location": "/0?key=SECRET"}))
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
def test_a_redirect_leads_nowhere_else(
    location: str, kind: Kind, site: Site, local: WebImages
) -> None:
    url = site.put("/a", Answer(b"", 302, headers={"Location": location}))
    for use in (local.read, local.identify):
        assert problem_of(use, url).problem.kind is kind
    assert len(site.asked) == 2


def test_a_redirect_does_not_give_up_encryption() -> None:
    assert redirected(URL("http://a/b"), "https://c/d") == URL("https://c/d")
    assert redirected(URL("https://a/b"), "d?e#f") == URL("https://a/d?e")
    with pytest.raises(RowError, match="from https:// to http:// is not followed"):
        redirected(URL("https://a/b"), "http://a/b")


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
def test_what_is_no_url_of_an_image(url: str, kind: Kind) -> None:
    error = problem_of(web_url, url)
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
def test_addresses_that_are_not_public(address: str) -> None:
    assert not may_connect(ip_address(address), allow_private=False)


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
def test_public_addresses(address: str) -> None:
    assert may_connect(ip_address(address), allow_private=False)
    assert may_connect(ip_address(address), allow_private=True)


def test_private_hosts_can_be_allowed_but_never_metadata() -> None:
    allowed = {one for one in PRIVATE if may_connect(ip_address(one), allow_private=True)}
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
    for use in (public.identify, public.read):
        error = problem_of(use, f"http://{host}:{site.server_port}/a.png?key=SECRET")
        assert error.problem.kind is Kind.IMAGE_REFUSED
    assert (site.asked, internet.connected) == ([], [])


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_of_a_private_address_is_refused(
    address: str, site: Site, public: WebImages, internet: Internet
) -> None:
    internet.names["images.example"] = [[address.partition("%")[0]]]
    for use in (public.identify, public.read):
        error = problem_of(use, "http://images.example/a.png?key=SECRET")
        assert error.problem.kind is Kind.IMAGE_REFUSED
        assert "images.example is at a private or reserved address" in str(error)
    assert (site.asked, internet.connected) == ([], [])


def test_a_public_name_is_read_and_a_private_one_it_redirects_to_is_not(
    site: Site, public: WebImages, internet: Internet
) -> None:
    internet.names = {"images.example": [[PUBLIC]], "inside.example": [["10.0.0.1"]]}
    site.put("/a.png", Answer())
    assert public.read("http://images.example/a.png") == PICTURE
    for target in ("//inside.example/", "//127.0.0.1/", "//[::ffff:10.0.0.1]/", "//2130706433/"):
        site.put("/to", Answer(b"", 302, headers={"Location": target}))
        error = problem_of(public.read, "http://images.example/to")
        assert error.problem.kind is Kind.IMAGE_REFUSED
    assert set(internet.connected) == {PUBLIC}


def test_of_several_addresses_only_public_ones_are_used(
    site: Site, public: WebImages, internet: Internet
) -> None:
    internet.names["images.example"] = [["127.0.0.1", "::1", PUBLIC, "10.0.0.1"]]
    site.put("/a.png", Answer())
    assert public.read("http://images.example/a.png") == PICTURE
    assert internet.connected == [PUBLIC]


def test_a_name_that_moves_to_a_private_address_is_not_followed(
    site: Site, public: WebImages, internet: Internet
) -> None:
    internet.names["images.example"] = [[PUBLIC], ["127.0.0.1"]]
    hang_up = {"Connection": "close"}
    site.put("/a.png", Answer(headers=hang_up), Answer(status=503, headers=hang_up), Answer())
    assert public.identify("http://images.example/a.png").startswith("url:")
    assert public.read("http://images.example/a.png") == PICTURE
    assert set(internet.connected) == {PUBLIC}

    async def look_up_again() -> None:
        with pytest.raises(RefusedAddressError):
            await CheckedResolver(allow_private=False).resolve("images.example", 80)

    asyncio.run(look_up_again())


def test_names_are_private_where_that_is_allowed(site: Site, internet: Internet) -> None:
    internet.names = {"inside.example": [["127.0.0.1"]], "cloud.example": [["169.254.169.254"]]}
    url = site.put("/a.png", Answer()).replace("127.0.0.1", "inside.example")
    with ImageReader(LIMIT, allow_private_hosts=True) as reader:
        assert reader.read(ImageRef(path=url)) == PICTURE
        assert reader.identify(ImageRef(path=url)).startswith("url:")
        with pytest.raises(RowError) as caught:
            reader.read(ImageRef(path="http://cloud.example/"))
    assert caught.value.problem.kind is Kind.IMAGE_REFUSED


def test_a_reader_refuses_private_hosts_by_default(site: Site) -> None:
    ref = ImageRef(path=site.put("/a.png", Answer()))
    with ImageReader(LIMIT) as reader:
        for use in (reader.read, reader.identify):
            with pytest.raises(RowError) as caught:
                use(ref)
            assert caught.value.problem.kind is Kind.IMAGE_REFUSED
    assert site.asked == []


def test_a_host_that_cannot_be_reached_is_left_alone_for_a_while(
    site: Site, local: WebImages, internet: Internet
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    error = problem_of(local.identify, f"{closed}/a.png?key=SECRET")
    assert error.problem.kind is Kind.CONNECTION
    assert len(internet.connected) == ATTEMPTS
    error = problem_of(local.read, f"{closed}/b.png")
    assert error.problem.kind is Kind.CONNECTION
    assert len(internet.connected) == ATTEMPTS
    assert local.read(site.put("/a.png", Answer())) == PICTURE


def test_a_name_that_is_not_known_may_be_known_later(public: WebImages, internet: Internet) -> None:
    error = problem_of(public.identify, "http://nowhere.example/a.png?key=SECRET")
    assert error.problem.kind is Kind.CONNECTION


@pytest.mark.parametrize("host", ["a..b", f"{'a' * 64}.example", "a%00b", "a b", "*.a"])
def test_what_is_no_host_name_costs_its_row(host: str, public: WebImages) -> None:
    for use in (public.identify, public.read):
        error = problem_of(use, f"http://{host}/a.png?key=SECRET")
        assert error.problem.kind in {Kind.BAD_ROW, Kind.CONNECTION}


def test_an_untrusted_certificate_may_be_mended() -> None:
    place = ConnectionKey("host", 443, True, True, None, None, None)
    error = aiohttp.ClientConnectorCertificateError(place, ssl.SSLCertVerificationError())
    problem = web_images._wire_error(URL("https://host/a.png"), error, False).problem
    assert problem.kind is Kind.CONNECTION
    assert "certificate is not trusted" in problem.message


def test_no_host_is_asked_too_much_at_once(site: Site, local: WebImages) -> None:
    url = site.put("/a.png", Answer(seconds=0.1))
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(local.read, [url] * 16)) == [PICTURE] * 16
    assert site.most_busy == PER_HOST


def test_a_busy_host_of_redirects_is_no_deadlock(site: Site, local: WebImages) -> None:
    site.put("/b.png", Answer(seconds=0.02))
    url = site.put("/a", Answer(b"", 302, headers={"Location": "b.png"}, seconds=0.02))
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(local.read, [url] * 16)) == [PICTURE] * 16


def test_what_is_under_way_ends_when_the_client_is_closed(site: Site) -> None:
    client = WebImages(LIMIT, allow_private_hosts=True)
    url = site.put("/a.png", Answer(seconds=20))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(problem_of, client.read, url)
        while not site.asked:
            time.sleep(0.01)
        client.close()
        assert future.result(5).problem.kind is Kind.CONNECTION
    assert problem_of(client.read, url).problem.kind is Kind.CONNECTION


def test_proxies_and_credentials_of_the_environment_are_not_used(
    site: Site, local: WebImages, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password SECRET")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert local.read(site.put("/a.png", Answer())) == PICTURE
    assert "Authorization" not in site.headers[0]


def test_a_host_that_is_silent_is_passed_over(
    site: Site, local: WebImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_images, "TOTAL_SECONDS", 0.2)
    monkeypatch.setattr(web_images, "CONNECT_SECONDS", 0.1)
    url = site.put("/a.png", Answer(seconds=5))
    assert problem_of(local.read, url).problem.kind is Kind.TIMEOUT
    error = problem_of(local.read, url)
    assert "could not be reached a moment ago" in error.problem.message
    assert len(site.asked) == ATTEMPTS


def test_a_host_with_one_silent_address_is_asked_for_the_others(
    site: Site, local: WebImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_images, "TOTAL_SECONDS", 0.4)
    monkeypatch.setattr(web_images, "CONNECT_SECONDS", 0.1)
    silent, good = site.put("/silent.png", Answer(seconds=5)), site.put("/good.png", Answer())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(problem_of, local.read, silent)
        while not waiting.done():
            assert local.read(good) == PICTURE
            time.sleep(0.02)
    assert waiting.result().problem.kind is Kind.TIMEOUT
    assert local.read(good) == PICTURE
