"""The settings of a pass's steps, made of the parameters of a run: the same for all who ask."""

from ..tasks.generating.chat_requests import GenerationSettings
from ..tasks.images.reader import ImageReader
from ..tasks.images.references import ImageBase
from ..tasks.prompting.keys import RequestSpec
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
        revision: digest of its checkpoint, if that is known, else empty.
    """
    return RequestSpec(
        model=model,
        model_revision=parameters.model_revision or revision,
        sampling=definition.sampling,
        images=parameters.images.settings.model_dump(mode="json"),
    )


def prompt_settings(
    definition: Pass, spec: RequestSpec, base: ImageBase, reader: ImageReader, images: Images
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
        limits=images.settings,
    )


def generation_settings(
    definition: Pass, reader: ImageReader, images: Images
) -> GenerationSettings:
    """How the prompts of a pass are sent."""
    return GenerationSettings(reader, definition.sampling, images.settings)
