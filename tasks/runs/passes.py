"""A pass: every row of a table is sent to the model once. A `Pass` is what is specific to one.

Everything else (row keys, batch cache, retries, crash isolation, resume, quarantine, counts) is
shared by all passes, and does not depend on what is asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..loading.columns import Columns
from ..parsing.parse import ParseSettings, pair_parse_settings
from ..parsing.qa_pairs import parse_answer
from ..prompting.prompts import DEFAULT_SYSTEM_PROMPT, PromptStyle, default_user_prompt
from ..storing.layout import PAIRS
from .parameters import RunParameters
from .plugins import find_parser, find_prompt_style


@dataclass(frozen=True)
class Pass:
    """What is asked about every row, and how the replies are parsed.

    Attributes:
        name: name of the pass, which is the first folder of all its objects.
        style_name: name of the prompt style in row keys.
        style: builds the messages of a row.
        parsing: how replies are parsed.
        system_prompt: system message of every conversation.
        user_prompt: user message if a row's conversation leaves nothing to answer.
        columns: where a row's images and conversation are.
        sampling: request options: temperature, max_tokens, ...
    """

    name: str
    style_name: str
    style: PromptStyle
    parsing: ParseSettings
    system_prompt: str
    user_prompt: str
    columns: Columns
    sampling: Mapping[str, Any]


def pairs_pass(parameters: RunParameters, columns: Columns) -> Pass:
    """The pass over the dataset's own rows, which generates QA pairs; `columns` are those read.

    Raises:
        ImageQAError: there is no such prompt style or parser.
    """
    style_name, style = find_prompt_style(parameters.prompt_style)
    parser_name, parser = find_parser(parameters.parsing.parser)
    system_prompt = parameters.system_prompt
    if parser is parse_answer and system_prompt == DEFAULT_SYSTEM_PROMPT:
        system_prompt = ""  # it asks for a question too, and the reply would be all the answer
    user_prompt = parameters.user_prompt.strip() or default_user_prompt(parameters.pairs_per_image)
    return Pass(
        name=PAIRS,
        style_name=style_name,
        style=style,
        parsing=pair_parse_settings(
            parser_name, parser, parameters.parsing.require_pairs, user_prompt
        ),
        system_prompt=system_prompt,
        user_prompt=user_prompt,
        columns=columns,
        sampling=parameters.sampling.options(),
    )
