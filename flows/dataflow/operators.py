"""The operator API of DataFlow-MM, implemented with `image_qa`.

A pipeline written for DataFlow runs unchanged except for its imports:

    from prefect_imageqa import FileStorage, ImageQAGenerator, LocalModelVLMServing_vllm
"""

import json
from dataclasses import replace
from typing import Any, Protocol

import pandas as pd

from ...serving.endpoint import VLLMEndpoint
from ...serving.types import Message
from ...tasks.errors import ImageQAError
from ...tasks.exporting.qa_json import QA_JSONL
from ...tasks.exporting.quarantine_jsonl import QUARANTINE_JSONL
from ...tasks.loading.columns import Columns, read_value, shown_names
from ...tasks.loading.conversations import questions
from ...tasks.object_store.store import ObjectStore
from ...tasks.prompting.chat import chat_prompt
from ...tasks.prompting.style import PromptInput
from ...tasks.records import Kind, RowError
from ...tasks.runs.exports import Exports
from ...tasks.runs.parameters import Parsing
from ..image_qa import image_qa
from ..summary import RunSummary
from .api_model import APIVLMServing_openai
from .file_storage import FileStorage
from .local_model import LocalModelVLMServing_vllm

VIDEO_COLUMNS = frozenset({"video", "videos"})

Serving = LocalModelVLMServing_vllm | APIVLMServing_openai | VLLMEndpoint | str


class PromptTemplate(Protocol):
    """What DataFlow calls a prompt template."""

    def build_prompt(self) -> str:
        """The prompt."""


class PromptedVQAGenerator:
    """Answers each row's prompt about its image; without an image column, only the prompt is sent.

    Args:
        serving: a local model, or the URL or `VLLMEndpoint` of a running server.
        system_prompt: system message of every prompt.
        prompt_template: its prompt takes the place of the first turn of every conversation.
    """

    def __init__(
        self,
        serving: Serving,
        system_prompt: str = "You are a helpful assistant.",
        prompt_template: PromptTemplate | None = None,
    ) -> None:
        self.serving = serving
        self.system_prompt = system_prompt
        self.prompt_template = prompt_template

    def run(
        self,
        storage: FileStorage,
        input_conversation_key: str | None = "conversation",
        input_prompt_key: str | None = None,
        input_image_key: str | None = None,
        input_video_key: str | None = None,
        output_answer_key: str = "answer",
    ) -> str:
        """Read the storage's current table, answer its rows, and write the next table.

        The number of rows does not change: a row that could not be answered has null under
        `output_answer_key`, and its reason is in `<prefix>_step<N>.quarantine.jsonl`.

        Args:
            storage: storage of the table; call its `step()` first.
            input_conversation_key: column of conversations.
            input_prompt_key: column of plain prompts; takes precedence over conversations.
            input_image_key: column of images; None sends no images.
            input_video_key: column of videos, which are not supported: the table may not have it,
                or it must be empty.
            output_answer_key: column for the replies; an existing one is replaced.

        Returns:
            `output_answer_key`.

        Raises:
            ImageQAError: as `image_qa`; or there is no such column of prompts, a row has several
                questions, or there are videos.
        """
        table = storage.read()
        _reject_videos(table, input_image_key, input_video_key)
        prompt_key = _prompt_column(table, input_prompt_key, input_conversation_key)
        answer_key = output_answer_key
        while answer_key in table.columns:
            answer_key = f"new_{answer_key}"
        summary = image_qa(
            dataset=storage.current(),
            output=storage.work_folder(),
            system_prompt=self.system_prompt,
            **self._prompt(input_prompt_key),
            columns=Columns(
                image=input_image_key,
                conversation=prompt_key,
                output=answer_key,
            ),
            parsing=Parsing(require_pairs=False),
            exports=Exports(json_array=True),
            **_flow_parameters(self.serving),
        )
        failures = ObjectStore(uri=summary.output).read(QUARANTINE_JSONL)
        table[output_answer_key] = _answers(summary, answer_key, failures)
        storage.write(table)
        storage.write_quarantine(failures)
        return output_answer_key

    def _prompt(self, prompt_key: str | None) -> dict[str, Any]:
        if prompt_key is not None:
            return {"style": prompted}
        if self.prompt_template is None:
            return {}
        return {"style": templated, "user_prompt": self.prompt_template.build_prompt()}


class ImageQAGenerator:
    """Generates question-answer pairs about each row's image.

    Args:
        llm_serving: a local model, or the URL or `VLLMEndpoint` of a running server.
        system_prompt: what to generate.
    """

    def __init__(
        self,
        llm_serving: Serving,
        system_prompt: str = "You are a image question-answer generator. Your task is to generate "
        "a question-answer pair for the given image content.",
    ) -> None:
        self.generator = PromptedVQAGenerator(llm_serving, system_prompt)

    def run(
        self, storage: FileStorage, input_modal_key: str = "image", output_key: str = "output"
    ) -> str:
        """Read the current table, and write the next one with raw QA text under `output_key`.

        See `PromptedVQAGenerator.run`.
        """
        return self.generator.run(
            storage, input_image_key=input_modal_key, output_answer_key=output_key
        )


def prompted(prompt_input: PromptInput) -> list[Message]:
    """The chat style for rows that must have a prompt: one that failed in the step before has none.

    Raises:
        RowError: the row has no prompt.
    """
    if not any(turn.text.strip() for turn in prompt_input.turns):
        raise RowError(Kind.BAD_ROW, "the row has no prompt")
    return chat_prompt(prompt_input)


def templated(prompt_input: PromptInput) -> list[Message]:
    """The chat style, with the user prompt in place of the conversation's first turn."""
    first = [replace(turn, text=prompt_input.user_prompt) for turn in prompt_input.turns[:1]]
    return chat_prompt(replace(prompt_input, turns=(*first, *prompt_input.turns[1:])))


def _flow_parameters(serving: Serving) -> dict[str, Any]:
    if isinstance(serving, LocalModelVLMServing_vllm | APIVLMServing_openai):
        return serving.flow_parameters()
    return {"endpoint": serving}


def _reject_videos(table: pd.DataFrame, image_key: str | None, video_key: str | None) -> None:
    """Videos would be sent as images, or left out without a word."""
    names: set[str | None] = {video_key} | (VIDEO_COLUMNS & {image_key})
    if image_key is None and video_key is None:
        names = set(VIDEO_COLUMNS)
    for name in table.columns:
        if name in names and any(map(_holds_something, table[name])):
            raise ImageQAError(
                f"column {name!r} holds videos, which are not supported: extract frames, and name "
                "their column as the image column"
            )


def _holds_something(cell: Any) -> bool:
    if isinstance(cell, list | tuple):
        return any(map(_holds_something, cell))
    return bool(pd.notna(cell)) and cell != ""


def _prompt_column(
    table: pd.DataFrame, prompt_key: str | None, conversation_key: str | None
) -> str | None:
    """The column that says what each row is asked; None if the table has none."""
    if prompt_key is not None and prompt_key not in table.columns:
        known = shown_names(map(str, table.columns))
        raise ImageQAError(f"no column {prompt_key!r}; the columns are: {known}")
    key = prompt_key or conversation_key
    if key not in table.columns:
        return None
    if any(map(_is_several, table[key])):
        raise ImageQAError(
            f"column {key!r} has several questions in a row: give each a row of its own"
        )
    return key


def _is_several(cell: Any) -> bool:
    """Whether a run would ask several questions about a row, which has one place for an answer."""
    try:
        return len(questions(read_value({"": cell}, ""))) > 1
    except RowError:  # the row is quarantined
        return False


def _answers(summary: RunSummary, key: str, failures: bytes) -> list[str | None]:
    """One reply per row, None for quarantined rows; the exports are in dataset order."""
    failed = {json.loads(line)["row"] for line in failures.splitlines()}
    lines = ObjectStore(uri=summary.output).read(QA_JSONL).splitlines()
    replies = iter([json.loads(line)[key] for line in lines])
    return [None if row in failed else next(replies) for row in range(summary.rows)]
