"""The clients that a run is compared with. Each asks about all images of a folder, once.

    python benchmarks/performance_clients.py {raw,fastraw,pool,script} TASK

TASK is a JSON object: `url`, `model`, `images` (a folder), `prompts` (system and user), `at_once`
(requests in flight), `output` (a file). The raw clients need aiohttp, the others need openai.
Prints rows and seconds as JSON.
"""

import asyncio
import base64
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

OPTIONS = {"temperature": 0.7, "max_tokens": 512}


def messages_about(image: str, prompts: list[str]) -> list[dict[str, Any]]:
    """A conversation about an image, given as a URI."""
    system, user = prompts
    content = [
        {"type": "image_url", "image_url": {"url": image}},
        {"type": "text", "text": user},
    ]
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]


def data_uri(path: str) -> str:
    """An image as a URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


async def raw(
    task: dict[str, Any], paths: list[str], encode: Callable[[bytes], bytes] = base64.b64encode
) -> None:
    """Read, encode, send, discard the reply: the least that any client does.

    The JSON around the image is made once, and no image is decoded, checked or stored.
    """
    import aiohttp

    mark = "IMAGE"
    body = {"model": task["model"], "messages": messages_about(mark, task["prompts"]), **OPTIONS}
    head, tail = json.dumps(body).encode().split(mark.encode())
    head += b"data:image/jpeg;base64,"
    url, remaining = f"{task['url']}/v1/chat/completions", iter(paths)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers={"Content-Type": "application/json"},
        timeout=aiohttp.ClientTimeout(total=600),
    ) as session:

        async def ask() -> None:
            for path in remaining:
                with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - half of Path's time
                    data = encode(file.readall())
                async with session.post(url, data=b"".join((head, data, tail))) as response:
                    response.raise_for_status()
                    await response.read()

        await asyncio.gather(*(ask() for _ in range(task["at_once"])))


async def fastraw(task: dict[str, Any], paths: list[str]) -> None:
    """The raw client with a fast library for base64, which is half of its CPU otherwise."""
    from pybase64 import b64encode

    await raw(task, paths, b64encode)


def pool(task: dict[str, Any], paths: list[str]) -> None:
    """A thread pool over one blocking client, all rows submitted at once: DataFlow's pattern."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{task['url']}/v1", api_key="none")

    def ask(path: str) -> str:
        messages: Any = messages_about(data_uri(path), task["prompts"])
        reply = client.chat.completions.create(model=task["model"], messages=messages, **OPTIONS)
        return str(reply.choices[0].message.content)

    answers = [""] * len(paths)
    with ThreadPoolExecutor(task["at_once"]) as workers:
        futures = {workers.submit(ask, path): number for number, path in enumerate(paths)}
        for future in as_completed(futures):
            answers[futures[future]] = future.result()
    Path(task["output"]).write_text(json.dumps(answers))


async def script(task: dict[str, Any], paths: list[str]) -> None:
    """What one writes in ten minutes: AsyncOpenAI, a semaphore, a line of JSON for each answer."""
    from openai import AsyncOpenAI

    slots = asyncio.Semaphore(task["at_once"])
    client = AsyncOpenAI(base_url=f"{task['url']}/v1", api_key="none")
    with Path(task["output"]).open("w") as output:

        async def ask(path: str) -> None:
            async with slots:
                messages: Any = messages_about(data_uri(path), task["prompts"])
                reply = await client.chat.completions.create(
                    model=task["model"], messages=messages, **OPTIONS
                )
            answer = {"image": path, "answer": reply.choices[0].message.content}
            output.write(json.dumps(answer) + "\n")

        await asyncio.gather(*map(ask, paths))


def main() -> None:
    """Ask as this client, and print rows and seconds."""
    kind, task = sys.argv[1], json.loads(sys.argv[2])
    importlib.import_module("aiohttp" if "raw" in kind else "openai")
    started = time.perf_counter()
    paths = sorted(entry.path for entry in os.scandir(task["images"]))
    if kind == "pool":
        pool(task, paths)
    else:
        asyncio.run({"raw": raw, "fastraw": fastraw, "script": script}[kind](task, paths))
    print(json.dumps({"rows": len(paths), "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
