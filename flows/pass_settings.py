"""The settings of a pass's steps, made of a run's parameters: a run and a preview ask the same."""

from collections.abc import Callable
from functools import partial

from ..serving.background_loop import BackgroundLoop
from ..serving.types import Outcome
from ..tasks.generating.chat_requests import GenerationSettings
from ..tasks.images.file_digests import FileDigests
from ..tasks.images.reader import ImageReader
from ..tasks.images.references import ImageBase
from ..tasks.loading.dataset import Dataset
from ..tasks.loading.load import load_dataset
from ..tasks.object_store.credentials import S3Credentials
from ..tasks.parsing.faults import reply_fault
from ..tasks.prompting.keys import RequestSpec
from ..tasks.prompting.open_style import OpenStyle
from ..tasks.prompting.prompts import PromptSettings
from ..tasks.runs.parameters import Images, RunParameters
from ..tasks.runs.passes import Pass


def request_spec(
    parameters: RunParameters, definition: Pass, model: str, revision: str
) -> RequestSpec:
    """What all rows of a pass share that decides their answers.

    Args:
        parameters: those of the run.
        definition: the pass.
        model: the name the model is served under.
        revision: digest of its checkpoint; empty where that is not known.
    """
    return RequestSpec(
        model=model,
        model_revision=parameters.model_revision or revision,
        sampling=definition.sampling,
        images=parameters.images.settings.model_dump(mode="json"),
    )


def open_table(
    parameters: RunParameters, style: OpenStyle, credentials: S3Credentials | None
) -> Dataset:
    """The dataset of a run; nothing in Prefect tells of it.

    Raises:
        DatasetError: as `load_dataset` does.
    """
    return load_dataset.fn(
        parameters.dataset,
        parameters.columns,
        parameters.output,
        parameters.images.root,
        parameters.max_rows,
        credentials,
        samples=parameters.asking.samples,
        used=style.used_columns,
    )


def image_reader(
    images: Images,
    credentials: S3Credentials | None,
    loop: BackgroundLoop | None = None,
) -> ImageReader:
    """The reader of a run's images; to be closed."""
    return ImageReader(
        images.max_file_bytes,
        credentials=credentials,
        allow_private_hosts=images.allow_private_hosts,
        digests=FileDigests(),
        root=images.root or None,
        loop=loop,
    )


def prompt_settings(
    parameters: RunParameters,
    definition: Pass,
    spec: RequestSpec,
    base: ImageBase,
    reader: ImageReader,
) -> PromptSettings:
    """How the rows of a pass become prompts."""
    return PromptSettings(
        base,
        reader,
        spec,
        style=definition.style,
        system_prompt=definition.system_prompt,
        user_prompt=definition.user_prompt,
        columns=definition.columns,
        limits=parameters.images.settings,
        label=definition.label,
    )


def generation_settings(
    parameters: RunParameters,
    definition: Pass,
    reader: ImageReader,
    known_reply: Callable[[str], Outcome | None] | None = None,
) -> GenerationSettings:
    """How the prompts of a pass are sent."""
    corrects = parameters.asking.corrective_retry
    return GenerationSettings(
        reader,
        definition.sampling,
        parameters.images.settings,
        fault_of=partial(reply_fault, settings=definition.parsing) if corrects else None,
        known_reply=known_reply,
    )
