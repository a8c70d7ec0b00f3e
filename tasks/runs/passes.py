"""A pass: every row of a table is sent to the model once. A `Pass` is what is specific to one.

Everything else (row keys, batch cache, retries, crash isolation, resume, quarantine, counts) is
shared by all passes, and does not depend on what is asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checking.check import AskedCheck
from ..errors import ImageQAError
from ..generating.chat_requests import GUIDES
from ..loading.columns import Columns
from ..object_store.credentials import S3Credentials
from ..parsing.parse import ANSWER, ParseSettings, pair_parse_settings
from ..parsing.qa_pairs import parse_answer, parse_qa_pairs
from ..parsing.reply_schema import read_reply_schema
from ..prompting.chat import DEFAULT_SYSTEM_PROMPT, default_user_prompt
from ..prompting.open_style import OpenStyle, StyleSettings, open_style
from ..prompting.style import Style
from ..storing import layout
from .parameters import RunParameters
from .plugins import find_parser


@dataclass(frozen=True)
class Pass:
    """What is asked about every row, and how the replies are parsed.

    Attributes:
        name: name of the pass, which is the first folder of all its objects.
        style: builds the messages of a row.
        user_prompt: user message if a row's conversation leaves nothing to answer.
        columns: where a row's images and conversation are.
        sampling: request options: temperature, max_tokens, ...
        unit: what its rows are, in messages.
    """

    name: str
    style: Style
    parsing: ParseSettings
    system_prompt: str
    user_prompt: str
    columns: Columns
    sampling: Mapping[str, Any]
    unit: str = "rows"

    @property
    def label(self) -> str:
        """What its task runs are named by: the name of the check; empty for the main pass."""
        return "" if self.name == layout.PAIRS else self.name.removeprefix(f"{layout.CHECKS}/")


def run_style(
    parameters: RunParameters, credentials: S3Credentials | None, *, guided: bool = True
) -> OpenStyle:
    """The style of a run.

    `guided` is whether the server can be made to follow a JSON schema.

    Raises:
        ImageQAError: there is no such style, or it does not go with the other parameters.
    """
    asking = parameters.asking
    if asking.format != "text" and GUIDES & parameters.sampling.extra_body.keys():
        raise ImageQAError(
            f"format {asking.format} makes replies follow a schema, and so does extra_body: leave "
            f"out one of them ({', '.join(sorted(GUIDES))})"
        )
    style = open_style(
        parameters.style,
        StyleSettings(
            pairs=parameters.pairs_per_image,
            language=asking.language or "",
            difficulty=asking.difficulty or "",
            questions_only=asking.answer == "separately",
            json=asking.format != "text",
            schema=user_schema(parameters, credentials),
            guided=guided,
            seed=parameters.sampling.seed or 0,
        ),
        credentials,
    )
    if not style.uses_conversation:
        if parameters.user_prompt.strip() or parameters.system_prompt not in _NO_SYSTEM_PROMPT:
            raise ImageQAError(
                f"style {style.name} has prompts of its own: leave out the system and the user "
                "prompt, or put them into a style file"
            )
        if parameters.parsing.parser in ("answer", parse_answer):
            raise ImageQAError(
                f"parser answer is for the rows' own questions, which style {style.name} does not "
                "ask: leave it out, or use style chat"
            )
    return style


def user_schema(
    parameters: RunParameters, credentials: S3Credentials | None
) -> dict[str, Any] | None:
    """The user's own JSON schema of a reply; None if there is none.

    Raises:
        ImageQAError: it cannot be read, or describes no QA pairs.
    """
    asking = parameters.asking
    if asking.format in ("text", "json"):
        return None
    questions_only = asking.answer == "separately"
    return read_reply_schema(asking.format, credentials, questions_only=questions_only)


_NO_SYSTEM_PROMPT = ("", DEFAULT_SYSTEM_PROMPT)


def main_pass(parameters: RunParameters, style: OpenStyle, columns: Columns) -> Pass:
    """The pass over the dataset's own rows, which generates QA pairs, or questions only.

    Raises:
        ImageQAError: there is no such parser, or it does not go with the other parameters.
    """
    name, parser = find_parser(parameters.parsing.parser)
    if parameters.asking.answer == "separately" and parser is not parse_qa_pairs:
        raise ImageQAError(
            "questions that are answered separately are read by parser qa_pairs: leave out the "
            "parser"
        )
    system_prompt = parameters.system_prompt
    if parser is parse_answer and system_prompt == DEFAULT_SYSTEM_PROMPT:
        system_prompt = ""  # it asks for a question too, and the reply would be all the answer
    user_prompt = parameters.user_prompt.strip() or default_user_prompt(
        parameters.pairs_per_image or 1
    )
    if not style.uses_conversation:
        system_prompt = user_prompt = ""
    return Pass(
        name=layout.PAIRS,
        style=style.style,
        parsing=pair_parse_settings(name, parser, parameters.parsing.require_pairs, user_prompt),
        system_prompt=system_prompt,
        user_prompt=user_prompt,
        columns=columns,
        sampling=parameters.sampling.options(),
    )


def check_pass(main: Pass, check: AskedCheck) -> Pass:
    """The pass over the pairs of the run, for a check that asks the model."""
    own = {name: value for name, value in main.sampling.items() if name not in GUIDES}
    return Pass(
        name=layout.check_name(check.name),
        style=check.style,
        parsing=check.parsing,
        system_prompt="",
        user_prompt="",
        columns=main.columns,
        sampling={**own, **check.sampling},
        unit="pairs",
    )


def answers_pass(main: Pass, style: OpenStyle) -> Pass:
    """The pass over the questions of the main pass, which answers each of them.

    Raises:
        ImageQAError: the style cannot answer questions on their own.
    """
    if style.answering is None:
        raise ImageQAError(
            f"style {style.name} cannot answer its questions separately; use style single, several "
            "or knowledge, or a file with a section `# questions`"
        )
    return Pass(
        name=layout.ANSWERS,
        style=style.answering,
        parsing=ANSWER,
        system_prompt="",
        user_prompt="",
        columns=main.columns,
        sampling=main.sampling,
        unit="questions",
    )
