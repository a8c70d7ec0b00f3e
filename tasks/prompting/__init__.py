"""Prompt: rows -> prompts.

In: rows, and how to turn a row into messages. Out: prompts, each with its messages, its image
references and its row key; a row that cannot be used becomes a prompt with a problem.
"""

from .chat import DEFAULT_SYSTEM_PROMPT, chat_prompt
from .keys import RequestSpec
from .prompts import PromptSettings, prompt_rows
from .style import PromptInput

__all__ = [
    "DEFAULT_SYSTEM_PROMPT",
    "PromptInput",
    "PromptSettings",
    "RequestSpec",
    "chat_prompt",
    "prompt_rows",
]
