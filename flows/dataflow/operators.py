"""The operator API of DataFlow-MM, implemented with `image_qa`.

A pipeline written for DataFlow runs unchanged except for its imports:

    from prefect_imageqa import FileStorage, ImageQAGenerator, LocalModelVLMServing_vllm
"""

import json

import pandas as pd

from ...serving.endpoint import VLLMEndpoint
from ...tasks.errors import ImageQAError
from ...tasks.exporting.qa_json import QA_JSONL
from ...tasks.exporting.quarantine_jsonl import QUARANTINE_JSONL
from ...tasks.loading.columns import Columns
from ...tasks.object_store.store import ObjectStore
from ...tasks.runs.parameters import Exports, Parsing
from ..image_qa import image_qa
from ..summary import RunSummary
from .file_storage import FileStorage
from .local_model import LocalModelVLMServing_vllm, endpoint_of

VIDEO_COLUMNS = frozenset({"video", "videos"})


class PromptedVQAGenerator:
    """Answers each row's prompt about its image; without an image column, only the prompt is sent.

    Args:
        serving: a local model, or the URL or `VLLMEndpoint` of a running server.
        system_prompt: system message of every prompt.
    """

    def __init__(
        self,
        serving: LocalModelVLMServing_vllm | VLLMEndpoint | str,
        system_prompt: str = "You are a helpful assistant.",
    ) -> None:
        self.serving = serving
        self.system_prompt = system_prompt

    def run(
        self,
        storage: FileStorage,
        input_conversation_key: str | None = "conversation",
        input_prompt_key: str | None = None,
        input_image_key: str | None = None,
        output_answer_key: str = "answer",
        input_video_key: str | None = None,
    ) -> str:
        """Read the storage's current table, answer its rows, and write the next table.

        The number of rows does not change: a row that could not be answered has null under
        `output_answer_key`, and its reason is in `<prefix>_step<N>.quarantine.jsonl`.

        Args:
            storage: storage of the table; call its `step()` first.
            input_conversation_key: column of conversations.
            input_prompt_key: column of plain prompts; takes precedence over conversations.
            input_image_key: column of images; None sends no images.
            output_answer_key: column for the replies; an existing one is replaced.
            input_video_key: not supported; must be None.

        Returns:
            `output_answer_key`.

        Raises:
            ImageQAError: as `image_qa`, and for a video column.
        """
        table = storage.read()
        video_key = input_video_key or _video_column(table, input_image_key)
        if video_key is not None:
            raise ImageQAError(
                f"column {video_key!r} holds videos, which are not supported: extract frames, "
                "and name their column as the image column"
            )
        answer_key = output_answer_key
        while answer_key in table.columns:
            answer_key = f"new_{answer_key}"
        summary = image_qa(
            dataset=storage.current(),
            output=storage.work_folder(),
            system_prompt=self.system_prompt,
            columns=Columns(
                image=input_image_key,
                conversation=input_prompt_key or input_conversation_key or "",
                output=answer_key,
            ),
            parsing=Parsing(require_pairs=False),
            exports=Exports(json_array=True),
            **endpoint_of(self.serving),
        )
        failures = ObjectStore(uri=summary.output).read(QUARANTINE_JSONL)
        table[output_answer_key] = _answers(summary, answer_key, failures)
        storage.write(table)
        storage.write_quarantine(failures)
        return output_answer_key


class ImageQAGenerator:
    """Generates question-answer pairs about each row's image.

    Args:
        llm_serving: a local model, or the URL or `VLLMEndpoint` of a running server.
        system_prompt: what to generate.
    """

    def __init__(
        self,
        llm_serving: LocalModelVLMServing_vllm | VLLMEndpoint | str,
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


def _video_column(table: pd.DataFrame, image_key: str | None) -> str | None:
    """A video column that would be used as the image column, or silently ignored."""
    if image_key is not None:
        return image_key if image_key in VIDEO_COLUMNS else None
    return next((name for name in table.columns if name in VIDEO_COLUMNS), None)


def _answers(summary: RunSummary, key: str, failures: bytes) -> list[str | None]:
    """One reply per row, None for quarantined rows; the exports are in dataset order."""
    failed = {json.loads(line)["row"] for line in failures.splitlines()}
    lines = ObjectStore(uri=summary.output).read(QA_JSONL).splitlines()
    replies = iter([json.loads(line)[key] for line in lines])
    return [None if row in failed else next(replies) for row in range(summary.rows)]
