"""`prefect-imageqa styles`: lists the built-in styles, shows one, or checks a file."""

from textwrap import indent

from rich.console import Console
from rich.text import Text

from ...tasks.errors import ImageQAError
from ...tasks.prompting.catalogue import built_in_styles
from ...tasks.prompting.chat import CHAT
from ...tasks.prompting.open_style import (
    OpenStyle,
    StyleSettings,
    find_style_file,
    open_style,
    style_names,
)
from ..open_store import open_store
from .options import Store


def styles(style: str = "", /, *, store: Store = None) -> int:
    """List the built-in styles, with an example of each.

    Of a built-in style, its file is printed, from which to write one of your own. A file of your
    own or a mix is checked: exit code 1 and one line say what is wrong with it.

    Examples: prefect-imageqa styles; prefect-imageqa styles single > mine.md;
    prefect-imageqa styles mine.md

    Parameters
    ----------
    style:
        Name of a built-in style, path or s3:// URI of a style file, or a mix.
    """
    if not style:
        _list()
    elif style == CHAT:
        raise ImageQAError(
            "style chat is no file: its prompts are the run's --system-prompt and --user-prompt, "
            "and the rows' conversations"
        )
    elif style.partition("/")[0] in style_names() and "=" not in style:
        file, _ = find_style_file(style)
        print(file.text, end="")
    else:
        credentials = open_store(".", store).s3_credentials
        _describe(open_style(style, StyleSettings(), credentials))
    return 0


def _list() -> None:
    console = Console(highlight=False, markup=False)
    for entry in built_in_styles():
        console.print(Text.assemble((entry.name, "bold"), f": {entry.description}"))
        console.print(Text(indent(f"{entry.example}\n", "    "), "dim"))
    console.print(
        "The examples are about a picture of a bus stop. A style of your own is a file: begin with "
        "`prefect-imageqa styles NAME > mine.md`, give it another name, and ask with "
        "`--style mine.md`. Several are mixed by weights: `--style single=2,yes-no=1`."
    )


def _describe(style: OpenStyle) -> None:
    print(f"{style.name}: can be used")
    if style.columns:
        print(f"needs the columns {', '.join(sorted(style.columns))}")
