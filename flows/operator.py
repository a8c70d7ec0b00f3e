"""The operator API of DataFlow-MM, on the pipeline of `image_qa`.

A pipeline written for DataFlow runs with its import lines changed:

    from prefect_imageqa import FileStorage, ImageQAGenerator, LocalModelVLMServing_vllm
"""

import json
from typing import Any

import pandas as pd

from ..serving.checkpoint import checkpoint_digest
from ..serving.endpoint import VLLMEndpoint
from ..serving.launch import ServerOptions, local_checkpoint
from ..serving.server import VLLMServer
from ..tasks.errors import ImageQAError
from ..tasks.exporting import QA_JSONL, QUARANTINE_JSONL
from ..tasks.object_store import ObjectStore
from ..tasks.parameters import Columns, Exports, Parsing, Sampling
from .file_storage import FileStorage
from .image_qa import image_qa
from .summary import RunSummary

__all__ = ["FileStorage", "ImageQAGenerator", "LocalModelVLMServing_vllm", "PromptedVQAGenerator"]

VIDEO_COLUMNS = frozenset({"video", "videos"})


class LocalModelVLMServing_vllm:  # noqa: N801 - DataFlow's name
    """A model served by vLLM on this machine: started at first use, kept until the program ends.

    Servings of the same model with the same server options share one server.

    Args:
        hf_model_name_or_path: path of a checkpoint, or its name on the hub.
        hf_cache_dir: folder of the hub's downloads.
        hf_local_dir: folder that holds the checkpoint already; wins over the name.
        vllm_tensor_parallel_size: GPUs that share each layer.
        vllm_temperature: sampling temperature; 0 always takes the best token.
        vllm_top_p: probability mass sampled from.
        vllm_max_tokens: tokens of a reply; a longer one is no answer.
        vllm_top_k: tokens sampled from.
        vllm_repetition_penalty: 1 is no penalty.
        vllm_seed: seed of the sampling.
        vllm_max_model_len: tokens of prompt and reply together.
        vllm_gpu_memory_utilization: share of a GPU's memory that vLLM takes, 0 to 1.
        python: interpreter that has vLLM.
    """

    def __init__(
        self,
        hf_model_name_or_path: str,
        hf_cache_dir: str | None = None,
        hf_local_dir: str | None = None,
        vllm_tensor_parallel_size: int = 1,
        vllm_temperature: float = 0.7,
        vllm_top_p: float = 0.9,
        vllm_max_tokens: int = 1024,
        vllm_top_k: int = 40,
        vllm_repetition_penalty: float = 1.0,
        vllm_seed: int | None = 42,
        vllm_max_model_len: int | None = None,
        vllm_gpu_memory_utilization: float | None = None,
        python: str | None = None,
    ) -> None:
        self.sampling = Sampling(
            temperature=vllm_temperature,
            top_p=vllm_top_p,
            top_k=vllm_top_k,
            repetition_penalty=vllm_repetition_penalty,
            seed=vllm_seed,
            max_tokens=vllm_max_tokens,
        )
        self.options = ServerOptions(
            model=hf_local_dir or hf_model_name_or_path,
            tensor_parallel_size=vllm_tensor_parallel_size,
            max_model_len=vllm_max_model_len,
            gpu_memory_utilization=vllm_gpu_memory_utilization,
            extra_args=("--download-dir", hf_cache_dir) if hf_cache_dir else (),
            python=python,
        )

    def start_serving(self) -> VLLMServer:
        """The running server; started now if it is not there."""
        server = _servers.get(self.options)
        if server is None or not server.is_alive():
            server = VLLMServer(self.options)
            server.start()
            _servers[self.options] = server
        return server

    def cleanup(self) -> None:
        """Stop the server; the next use starts it again."""
        if server := _servers.pop(self.options, None):
            server.stop()


_servers: dict[ServerOptions, VLLMServer] = {}
"""Servers of this process; each stops itself when the process ends."""


class PromptedVQAGenerator:
    """Answers each row's prompt about its image; without an image column, the prompt alone.

    Args:
        serving: a local model, or the URL or `VLLMEndpoint` of a running server.
        system_prompt: said before every prompt.
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
        """Read the storage's current table, answer its rows, and write the next.

        Rows stay as many as they were: one that could not be answered has null under
        `output_answer_key`, and its reason in `<prefix>_step<N>.quarantine.jsonl`.

        Args:
            storage: where the table is; call its `step()` first.
            input_conversation_key: column with conversations.
            input_prompt_key: column with plain prompts; taken instead of conversations.
            input_image_key: column with images; None asks without.
            output_answer_key: column that gets the replies; one that exists is replaced.
            input_video_key: must stay None.

        Returns:
            `output_answer_key`.

        Raises:
            ImageQAError: as `image_qa` does, and for a video column.
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
            **_asked(self.serving),
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
        """Read the current table, and write the next with raw QA text under `output_key`.

        See `PromptedVQAGenerator.run`.
        """
        return self.generator.run(
            storage, input_image_key=input_modal_key, output_answer_key=output_key
        )


def _video_column(table: pd.DataFrame, image_key: str | None) -> str | None:
    """The video column that would be asked about, or passed over without a word."""
    if image_key is not None:
        return image_key if image_key in VIDEO_COLUMNS else None
    return next((name for name in table.columns if name in VIDEO_COLUMNS), None)


def _asked(serving: LocalModelVLMServing_vllm | VLLMEndpoint | str) -> dict[str, Any]:
    """The arguments of `image_qa` that say whom to ask."""
    if not isinstance(serving, LocalModelVLMServing_vllm):
        return {"endpoint": serving}
    server = serving.start_serving()
    checkpoint = local_checkpoint(serving.options.model)
    return {
        "endpoint": server.url,
        "model": server.model_name,
        "model_revision": checkpoint_digest(checkpoint) if checkpoint else "",
        "sampling": serving.sampling,
    }


def _answers(summary: RunSummary, key: str, failures: bytes) -> list[str | None]:
    """One reply per row, None for the quarantined; the exports are in dataset order."""
    failed = {json.loads(line)["row"] for line in failures.splitlines()}
    lines = ObjectStore(uri=summary.output).read(QA_JSONL).splitlines()
    replies = iter([json.loads(line)[key] for line in lines])
    return [None if row in failed else next(replies) for row in range(summary.rows)]
