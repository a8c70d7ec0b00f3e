"""Records what the demo model replies to each style about a drawn scene, for the docs.

    python docs/style_replies.py [--checkpoint FOLDER] [--seed 5]

Starts a vLLM server on CPU; the build of the docs puts the replies into the pages of the styles.
"""

import argparse
import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx
from prefect_imageqa.serving.demo_model.scenes import draw_scene, held_out_rng, random_scene
from prefect_imageqa.serving.server.launch import ServerOptions
from prefect_imageqa.serving.server.server import VLLMServer
from prefect_imageqa.tasks.prompting.chat import DEFAULT_SYSTEM_PROMPT, default_user_prompt
from prefect_imageqa.tasks.prompting.open_style import StyleSettings, open_style, style_names
from prefect_imageqa.tasks.prompting.style import PromptInput

FOLDER = Path(__file__).parent / "styles"
CHECKPOINT = FOLDER.parents[1] / "serving" / "demo_model" / "checkpoint"
SAMPLING = {"temperature": 0.0, "max_tokens": 256}

KINDS = {"knowledge": "knowledge/counting"}
"""The demo model knows no charts or documents."""


def messages(style: str, image: str) -> list[dict[str, Any]]:
    """A row's messages in a style, with the image as a data URI."""
    opened = open_style(KINDS.get(style, style), StyleSettings())
    user = default_user_prompt(1)
    rendered = opened.style(
        PromptInput((), 1, DEFAULT_SYSTEM_PROMPT, user, {"image": "images/0.png"})
    )
    return [
        {
            "role": message["role"],
            "content": message["content"]
            if isinstance(message["content"], str)
            else [_part(part, image) for part in message["content"]],
        }
        for message in rendered.messages
    ]


def _part(part: dict[str, Any], image: str) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    return {"type": "image_url", "image_url": {"url": image}}


def main() -> None:
    """Draw a scene, ask about it in each style, and write both."""
    parser = argparse.ArgumentParser(description="Record replies of the demo model for the docs.")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="the one to serve")
    parser.add_argument("--seed", type=int, default=5, help="seed of the scene")
    arguments = parser.parse_args()
    rng = held_out_rng(arguments.seed)
    encoded = io.BytesIO()
    draw_scene(random_scene(rng), rng=rng).save(encoded, "PNG")
    (FOLDER / "scene.png").write_bytes(encoded.getvalue())
    image = f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"
    replies: dict[str, dict[str, str]] = {}
    with VLLMServer(ServerOptions(model=arguments.checkpoint)) as server:
        for style in style_names():
            body = {"model": server.model_name, "messages": messages(style, image), **SAMPLING}
            reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
            text = reply.raise_for_status().json()["choices"][0]["message"]["content"]
            print(f"--- {style}\n{text}", flush=True)
            replies[style] = {"image": "scene.png", "reply": text}
    (FOLDER / "replies.json").write_text(f"{json.dumps(replies, indent=2)}\n", "utf-8")


if __name__ == "__main__":
    main()
