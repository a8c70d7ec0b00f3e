"""Throughput of `prefect-imageqa run` relative to a raw client on the same server.

    python benchmarks/throughput.py [--rows 4096] [--vllm-rows 1024]

The raw client is an aiohttp loop that reads each file, sends it and discards the reply: no Prefect,
no image checks, no retries, nothing stored. Each gets new images, because vLLM caches those that
it has processed.
"""

import argparse
import asyncio
import base64
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image, ImageChops
from prefect_imageqa.serving.demo_model.scenes import draw_scene, random_scene
from prefect_imageqa.serving.server.launch import ServerOptions
from prefect_imageqa.serving.server.server import VLLMServer
from prefect_imageqa.tasks.prompting.chat import DEFAULT_SYSTEM_PROMPT, DEFAULT_USER_PROMPT
from servers import StubServer

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE.parent / "serving" / "demo_model" / "checkpoint"
IN_FLIGHT = 128
SIZE = (640, 480)


def draw_images(folder: Path, count: int, seed: int, noise: int) -> list[Path]:
    """Draw `count` JPEGs of 640x480; with noise, they are as large as photographs."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    grain = Image.effect_noise(SIZE, noise).convert("RGB")
    paths = []
    for number in range(count):
        image = draw_scene(random_scene(rng), *SIZE, rng)
        if noise:
            shifted = ImageChops.offset(grain, rng.randrange(SIZE[0]), rng.randrange(SIZE[1]))
            image = Image.blend(image, shifted, 0.3)
        paths.append(folder / f"{number:05}.jpg")
        image.save(paths[-1], quality=85)
    return paths


async def ask_raw(url: str, model: str, paths: list[Path]) -> float:
    """Rows per second of the raw client."""
    slots = asyncio.Semaphore(IN_FLIGHT)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask(path: Path) -> None:
            async with slots:
                data = base64.b64encode(path.read_bytes()).decode()
                image = {"url": f"data:image/jpeg;base64,{data}"}
                body = {
                    "model": model,
                    "messages": [
                        {"role": "system", "content": DEFAULT_SYSTEM_PROMPT},
                        {
                            "role": "user",
                            "content": [
                                {"type": "image_url", "image_url": image},
                                {"type": "text", "text": DEFAULT_USER_PROMPT},
                            ],
                        },
                    ],
                    "temperature": 0.7,
                    "max_tokens": 512,
                }
                async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                    reply: Any = await response.json()
                    assert reply["choices"][0]["message"]["content"]

        started = time.perf_counter()
        await asyncio.gather(*(ask(path) for path in paths))
        return len(paths) / (time.perf_counter() - started)


def run_ours(url: str, images: Path, output: Path) -> tuple[float, float]:
    """Rows per second of `prefect-imageqa run`, and its total wall time in seconds."""
    command = [
        *(str(Path(sys.executable).with_name("prefect-imageqa")), "run", str(images)),
        *("--output", str(output), "--endpoint", url, "--json"),
        *("--max-in-flight", str(IN_FLIGHT)),
    ]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    wall = time.perf_counter() - started
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["ok"] == summary["rows"], summary
    return summary["rows"] / summary["seconds"], wall


def compare(name: str, url: str, model: str, rows: int, noise: int) -> None:
    """Measure both, ours between two raw runs, and print the ratio."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sets = [folder / part for part in ("warm", "raw-1", "ours", "raw-2")]
        counts = (min(rows, 64), rows, rows, rows)
        drawn = [
            draw_images(images, count, seed, noise)
            for seed, (images, count) in enumerate(zip(sets, counts, strict=True))
        ]
        asyncio.run(ask_raw(url, model, drawn[0]))
        before = asyncio.run(ask_raw(url, model, drawn[1]))
        ours, wall = run_ours(url, sets[2], folder / "output")
        after = asyncio.run(ask_raw(url, model, drawn[3]))
        raw = (before + after) / 2
        print(
            f"{name}: {rows} rows, raw {before:.0f} and {after:.0f} rows/s, "
            f"ours {ours:.0f} rows/s = {ours / raw:.2f} of raw; {wall:.1f} s wall with start-up",
            flush=True,
        )


def main() -> None:
    """Measure on the stub, then on vLLM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4096, help="rows on the stub")
    parser.add_argument("--vllm-rows", type=int, default=1024, help="rows on vLLM; 0 skips it")
    options = parser.parse_args()
    with StubServer() as stub:
        compare("stub (50 ms, 256 slots)", stub.url, stub.model, options.rows, noise=40)
    if options.vllm_rows:
        with VLLMServer(ServerOptions(CHECKPOINT)) as server:
            rows = options.vllm_rows
            compare("vLLM on CPU, demo model", server.url, server.model_name, rows, noise=0)


if __name__ == "__main__":
    main()
