"""Images from the web in a run: fetched with limits, and never from forbidden addresses."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from prefect_imageqa import ErrorRateError, Images, ObjectStore, image_qa
from prefect_imageqa.flows.circuit_breaker import WINDOW
from prefect_imageqa.flows.publish import events
from prefect_imageqa.tasks.exporting.output_status import output_status


class Site(http.server.BaseHTTPRequestHandler):
    """Serves one image, and redirects to other addresses."""

    image = b""
    seen: list[tuple[str, str]]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.seen.append((self.command, self.path))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", str(len(self.image)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.image)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture
def site(drawn: Path) -> Iterator[str]:
    Site.image, Site.seen = (drawn / "images" / "000.png").read_bytes(), []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


NO_ROOT = Images()


def run(paths: list[str], tmp_path: Path, url: str, images: Images = NO_ROOT) -> Any:
    dataset = tmp_path / "rows.jsonl"
    dataset.write_text("".join(json.dumps({"image": path}) + "\n" for path in paths))
    return image_qa(str(dataset), str(tmp_path / "out"), endpoint=url, images=images)


@pytest.mark.usefixtures("with_report")
def test_forbidden_addresses_are_not_requested(
    stub: Any, site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emit_event = Mock()
    monkeypatch.setattr(events, "emit_event", emit_event)
    port = site.rpartition(":")[2]
    forbidden = [
        f"{site}/a.png",
        f"http://localhost:{port}/a.png",
        f"http://[::1]:{port}/a.png",
        f"http://[::ffff:127.0.0.1]:{port}/a.png",
        f"http://0x7f.1:{port}/a.png",
        "http://169.254.169.254/latest/meta-data/iam",
        "http://10.0.0.1/a.png",
        "file:///etc/passwd",
        "FILE:/etc/passwd",
    ]
    before = stub.stats()["requests"]
    with pytest.raises(ErrorRateError, match="most often: image_refused, 9 of 9") as raised:
        run(forbidden, tmp_path, stub.url)
    assert "rows.jsonl:9: " in str(raised.value)
    status = output_status(ObjectStore(uri=str(tmp_path / "out")))
    assert status
    assert status.last
    assert status.last.counts.reasons == {"image_refused": len(forbidden)}
    assert not status.unfinished
    assert [call.args[0] for call in emit_event.call_args_list] == [events.QUARANTINE_HIGH]
    failures = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert len(failures) == len(forbidden)
    assert stub.stats()["requests"] == before
    assert Site.seen == []
    assert (tmp_path / "out" / "report.html").exists()  # even if no row is answered


def test_images_outside_the_image_root_are_refused(
    stub: Any, site: str, drawn: Path, tmp_path: Path
) -> None:
    root = drawn / "images"
    (root / "link.png").symlink_to("/etc/passwd")
    (root / "up").symlink_to(tmp_path)
    outside = ["link.png", "up/drawn/dataset.json", "../dataset.json", "/etc/passwd", site]
    inside = run(["000.png", *outside], tmp_path, stub.url, Images(root=str(root)))
    assert (inside.ok, inside.reasons) == (1, {"image_refused": len(outside)})


@pytest.mark.usefixtures("with_report")
def test_private_hosts_can_be_allowed_but_not_the_metadata_address(
    stub: Any, site: str, tmp_path: Path
) -> None:
    images = [
        f"{site}/a.png?signed=secret",
        f"{site}/to//a.png",
        f"{site}/to/http://169.254.169.254/",
    ]
    first = run(images, tmp_path, stub.url, Images(allow_private_hosts=True))
    assert (first.ok, first.reasons) == (2, {"image_refused": 1})
    fetched = [path for command, path in Site.seen if command == "GET"]
    assert "/a.png?signed=secret" in fetched
    # Only the report downloads images again, for its pictures, and this run leaves it as it is.
    Site.seen.clear()
    again = run(images, tmp_path, stub.url, Images(allow_private_hosts=True))
    assert (again.ok, again.requests) == (2, 0)
    assert {command for command, _ in Site.seen} == {"HEAD"}
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    names = {path.name for path in written if b"signed=secret" in path.read_bytes()}
    assert names <= {
        "qa.jsonl",
        "pairs.parquet",
        "rows.parquet",
    }  # they contain the columns of the dataset


def test_a_run_whose_image_host_is_away_is_stopped(stub: Any, tmp_path: Path) -> None:
    before = stub.stats()["requests"]
    urls = [f"http://127.0.0.1:9/{row}.png" for row in range(2 * WINDOW)]
    with pytest.raises(
        ErrorRateError, match=f"{WINDOW} of the last {WINDOW} rows failed"
    ) as raised:
        run(urls, tmp_path, stub.url, Images(allow_private_hosts=True))
    assert f"({WINDOW} connection); the last: rows.jsonl:" in str(raised.value)
    assert stub.stats()["requests"] == before
