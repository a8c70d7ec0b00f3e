"""What the build of the docs does besides: it writes a page for each style, and the index.

The pages of the styles are in the repository too, so that they can be read there; they are written
anew from the style files, and from what `docs/style_replies.py` has recorded. So is the table of
sizes in `scaling.md`.
"""

import json
import logging
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from prefect_imageqa.flows.cli.sizes import sizes_table
from prefect_imageqa.tasks.prompting.catalogue import StyleEntry, built_in_styles
from prefect_imageqa.tasks.prompting.chat import (
    CHAT,
    DEFAULT_SYSTEM_PROMPT,
    default_user_prompt,
)
from prefect_imageqa.tasks.prompting.open_style import StyleSettings, find_style_file, open_style
from prefect_imageqa.tasks.prompting.style import PromptInput

DOCS = Path(__file__).parent
PAGES = DOCS / "styles"
REPLIES = PAGES / "replies.json"

SIZES_BEGIN, SIZES_END = "<!-- sizes: begin -->\n", "<!-- sizes: end -->\n"
SIZES, SIZES_RATE, SIZES_GPUS = (10**4, 10**6, 10**8), 30.0, 30
"""Rows, requests a second that a GPU answers, and GPUs of the table of sizes."""

_DEMO = "The demo model of this package, which is tiny and not always right, replies:"
_LOGGER = logging.getLogger("mkdocs.hooks")

REPOSITORY = DOCS.parent
OUTSIDE = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
    *("deployments/vllm", "deployments/kubernetes-workers.yaml"),
    "deployments/prefect-postgres.yaml",
)
"""What pages refer to outside of `docs`; the README is the index."""


def on_pre_build(config: MkDocsConfig) -> None:  # noqa: ARG001
    """Write the pages that have changed; the warning is an error with --strict."""
    _update(DOCS / "scaling.md", scaling_page())
    replies: dict[str, dict[str, str]] = json.loads(REPLIES.read_text("utf-8"))
    for style in built_in_styles():
        _update(PAGES / f"{style.name}.md", style_page(style, replies.get(style.name)))


def _update(path: Path, page: str) -> None:
    if not path.exists() or path.read_text("utf-8") != page:
        path.write_text(page, "utf-8")
        _LOGGER.warning("%s was out of date and is now written anew: commit it", path.name)


def scaling_page() -> str:
    """The page on scaling, with the table of sizes as it is computed now."""
    before, begin, rest = (DOCS / "scaling.md").read_text("utf-8").partition(SIZES_BEGIN)
    _, end, after = rest.partition(SIZES_END)
    return f"{before}{begin}\n{sizes_table(SIZES, SIZES_RATE, SIZES_GPUS)}\n{end}{after}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that pages refer to outside of `docs`."""
    for name in OUTSIDE:
        path = REPOSITORY / name
        for each in sorted(path.iterdir()) if path.is_dir() else [path]:
            uri = each.relative_to(REPOSITORY).as_posix()
            uri = "index.md" if uri == "README.md" else uri
            files.append(File.generated(config, uri, abs_src_path=str(each)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links within the repository into links within the site."""
    if page.file.src_uri in ("index.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        return markdown.replace("](docs/", "](").replace('src="docs/', 'src="')
    return markdown if "/" in page.file.src_uri else markdown.replace("](../", "](")


def style_page(style: StyleEntry, recorded: dict[str, str] | None) -> str:
    """The page of a style.

    Args:
        style: the style.
        recorded: a picture, and what the demo model replied about it.
    """
    parts = [f"# Style `{style.name}`", style.description]
    parts.append(_code(f"prefect-imageqa run qas.json --output qa --style {style.name}", "bash"))
    if recorded:
        parts += ["## Example", f"![A drawn scene]({recorded['image']})"]
        parts += [_DEMO, _code(recorded["reply"])]
        parts += ["About a picture of a bus stop, a reply might be:"]
    else:
        parts += ["## Example", "About a picture of a bus stop:"]
    parts += [_code(style.example), "## Prompt", *_prompt(style.name)]
    if style.name != CHAT:
        file, _unpinned = find_style_file(style.name)
        parts += [
            "## File",
            f"`prefect-imageqa styles {style.name}` prints it. "
            "[Styles](../styles.md) describes what it may contain.",
            _code(file.text, "markdown"),
        ]
    return "\n\n".join(parts) + "\n"


def _prompt(name: str) -> list[str]:
    """The messages that a row gets."""
    style = open_style(name, StyleSettings())
    system, user = DEFAULT_SYSTEM_PROMPT, default_user_prompt(1)
    rendered = style.style(PromptInput((), 0, system, user, {"image": "images/0.png"}))
    named = {"system": "The system message:", "user": "The user message, after the image:"}
    return [
        part
        for message in rendered.messages
        for part in (named[message["role"]], _code(str(message["content"])))
    ]


def _code(text: str, language: str = "text") -> str:
    return f"````{language}\n{text.strip()}\n````"
