"""The blocks in Prefect: registered, documented, and their secrets hidden."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import prefect_imageqa
import pytest
from prefect.blocks.core import Block
from prefect.settings import PREFECT_API_URL
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from prefect_imageqa import ObjectStore, VLLMEndpoint
from prefect_imageqa.flows.blocks import BLOCKS

SECRETS = ["hush-key", "hush-header", "hush-secret", "hush-token"]


def prefect(*arguments: str) -> str:
    """Run Prefect's command line against the tests' server."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("prefect")), "--no-prompt", *arguments],
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value()), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def call_api(path: str, body: Any = None) -> str:
    """The reply of Prefect's API to a client that does not request secrets."""
    request = Request(  # noqa: S310
        f"{PREFECT_API_URL.value()}{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urlopen(request, timeout=120) as response:  # noqa: S310
        answer: bytes = response.read()
    return answer.decode()


class TestPrefectsStandards(BlockStandardTestSuite):
    """Prefect's tests of a block, except for that of its logo: ours have none."""

    test_has_a_valid_image = None  # type: ignore[assignment]

    @pytest.fixture(params=BLOCKS, ids=["endpoint", "store"])
    def block(self, request: pytest.FixtureRequest) -> type[Block]:
        block: type[Block] = request.param
        return block


@pytest.mark.parametrize("block", BLOCKS, ids=["endpoint", "store"])
def test_the_example_of_a_block_is_valid(block: type[Block]) -> None:
    fenced = block.get_code_example() or ""
    code = re.sub(r"^```.*$", "", fenced, flags=re.MULTILINE)
    names = compile(code, "example", "exec").co_names
    assert "image_qa" in names
    assert {"load", "check"} <= set(names)
    assert {block.__name__, "image_qa"} <= set(names) & set(prefect_imageqa.__all__)


@pytest.mark.parametrize("module", ["prefect_imageqa", "prefect_imageqa.flows.blocks"])
def test_registering_adds_two_block_types(module: str) -> None:
    printed = prefect("block", "register", "-m", module)
    assert "Successfully registered 2 blocks" in printed
    # Prefect's own types have a logo: those without are of this package, or created by its runs.
    catalog = json.loads(call_api("/block_types/filter", {}))
    ours = {shown["slug"]: shown for shown in catalog if not shown["logo_url"]}
    assert {slug: shown["name"] for slug, shown in ours.items()} == {
        "vllm-endpoint": "vLLM Endpoint",
        "image-qa-store": "Image QA Store",
    }
    for block in BLOCKS:
        assert block.get_block_type_name() in printed
        shown = ours[block.get_block_type_slug()]
        assert shown["description"] == block.get_description()
        assert shown["documentation_url"] == str(block._documentation_url)
        assert "BLOCK_NAME" in shown["code_example"]


def test_the_api_does_not_reveal_secrets_of_blocks() -> None:
    endpoint: Any = VLLMEndpoint(
        urls=["http://gpu-1:8000"],
        api_key=SECRETS[0],
        extra_headers={"X-Token": SECRETS[1]},
    )
    store: Any = ObjectStore(
        uri="s3://bucket/qa",
        access_key_id="an-id",
        secret_access_key=SECRETS[2],
        session_token=SECRETS[3],
    )
    masked = {"api_key", "extra_headers", "secret_access_key", "session_token"}
    for block in (endpoint, store):
        document = str(block.save("with-secrets", overwrite=True))
        slug = block.get_block_type_slug()
        answers = [
            call_api(f"/block_documents/{document}"),
            call_api(f"/block_types/slug/{slug}/block_documents"),
            call_api(f"/block_types/slug/{slug}/block_documents/name/with-secrets"),
            call_api("/block_documents/filter", {}),
            call_api("/block_schemas/filter", {}),
        ]
        for answer in answers:
            assert not [secret for secret in SECRETS if secret in answer]
        data = json.loads(answers[0])["data"]
        hidden = {name for name, value in data.items() if "********" in json.dumps(value)}
        assert hidden == masked & data.keys()


def test_blocks_load_and_save_in_a_notebook(stub: Any, tmp_path: Path) -> None:
    async def cell() -> str:  # of a notebook, where an event loop runs
        VLLMEndpoint(urls=[f"{stub.url}/v1/chat/completions"]).save("of-a-notebook", overwrite=True)
        ObjectStore(uri=str(tmp_path)).save("of-a-notebook", overwrite=True)
        ObjectStore.load("of-a-notebook").check()
        return VLLMEndpoint.load("of-a-notebook").check()

    assert asyncio.run(cell()) == "stub"
    assert VLLMEndpoint.load("of-a-notebook").check() == "stub"


def test_saving_the_values_of_the_form_keeps_the_secrets() -> None:
    endpoint: Any = VLLMEndpoint(
        urls=["http://gpu-1:8000"], api_key=SECRETS[0], extra_headers={"X-Token": SECRETS[1]}
    )
    document = endpoint.save("edited", overwrite=True)
    shown = json.loads(call_api(f"/block_documents/{document}"))["data"]
    request = Request(  # noqa: S310
        f"{PREFECT_API_URL.value()}/block_documents/{document}",
        json.dumps({"data": shown | {"connect_timeout": 7}, "merge_existing_data": False}).encode(),
        {"Content-Type": "application/json"},
        method="PATCH",
    )
    urlopen(request, timeout=120).close()  # noqa: S310
    loaded = VLLMEndpoint.load("edited")
    assert isinstance(loaded, VLLMEndpoint)
    assert loaded.connect_timeout == 7
    assert loaded.headers() == endpoint.headers()
