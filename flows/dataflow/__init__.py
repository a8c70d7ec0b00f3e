"""The operator API of DataFlow-MM: operators, `FileStorage` and a local vLLM server."""

from .file_storage import FileStorage
from .operators import ImageQAGenerator, PromptedVQAGenerator
from .serving import LocalModelVLMServing_vllm

__all__ = ["FileStorage", "ImageQAGenerator", "LocalModelVLMServing_vllm", "PromptedVQAGenerator"]
