"""A pass: asking the model once about every row of a table. All that is particular to one is here.

What makes a pass safe (row keys, batch cache, retries, blame, resume, quarantine, accounting) is
written once, and knows nothing of what is asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..parsing.parse import ParseSettings, pair_parse_settings
from ..prompting.prompts import PromptStyle, default_user_prompt
from ..storing.layout import PAIRS
from .parameters import RunParameters
from .plugins import find_parser, find_prompt_style


@dataclass(frozen=True)
class Pass:
    """What is asked about every row, and what is made of the replies.

    Attributes:
        name: of the pass, and what the names of all its objects begin with.
        style_name: stands for the prompt style in row keys.
        style: builds a row's messages.
        parsing: how replies are parsed.
        system_prompt: said before every conversation.
        user_prompt: asked where a row's conversation leaves nothing to answer.
        image_key: the image column; None asks without images.
        conversation_key: the conversation column, used where a row has one.
        sampling: request options: temperature, max_tokens, ...
    """

    name: str
    style_name: str
    style: PromptStyle
    parsing: ParseSettings
    system_prompt: str
    user_prompt: str
    image_key: str | None
    conversation_key: str
    sampling: Mapping[str, Any]


def pairs_pass(parameters: RunParameters) -> Pass:
    """The pass over the dataset's own rows, which gives QA pairs.

    Raises:
        ImageQAError: there is no such prompt style or parser.
    """
    style_name, style = find_prompt_style(parameters.prompt_style)
    parser_name, parser = find_parser(parameters.parsing.parser)
    return Pass(
        name=PAIRS,
        style_name=style_name,
        style=style,
        parsing=pair_parse_settings(parser_name, parser, parameters.parsing.require_pairs),
        system_prompt=parameters.system_prompt,
        user_prompt=parameters.user_prompt.strip()
        or default_user_prompt(parameters.pairs_per_image),
        image_key=parameters.columns.image,
        conversation_key=parameters.columns.conversation,
        sampling=parameters.sampling.options(),
    )
