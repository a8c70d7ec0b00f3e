"""What the tests of several rooms share."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

BUCKET = "imageqa-tests"


def _wait_until_up(server: subprocess.Popen[bytes], url: str) -> None:
    for _ in range(200):
        assert server.poll() is None, "the S3 server died"
        try:
            urlopen(url, timeout=1)  # noqa: S310
        except HTTPError:
            return  # it answers; that it wants a key is as it should be
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the S3 server did not start")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server with one bucket; gives the bucket's URI and sets the AWS environment."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / BUCKET).mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert rclone, "rclone is missing; install the dev extra"
    command = [rclone, "serve", "s3", "--config", "", "--addr", address]
    server = subprocess.Popen(
        [*command, "--auth-key", "test-key,test-secret", str(folder)], stderr=subprocess.DEVNULL
    )
    try:
        _wait_until_up(server, f"http://{address}")
        with pytest.MonkeyPatch.context() as environment:
            for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
                environment.delenv(name, raising=False)
            environment.setenv("AWS_ACCESS_KEY_ID", "test-key")
            environment.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
            environment.setenv("AWS_ENDPOINT_URL", f"http://{address}")
            yield f"s3://{BUCKET}"
    finally:
        server.terminate()
        server.wait(timeout=10)
