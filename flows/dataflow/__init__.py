"""The operator API of DataFlow-MM: operators, `FileStorage` and a local vLLM server."""

from .file_storage import FileStorage
from .local_model import LocalModelVLMServing_vllm
from .operators import ImageQAGenerator, PromptedVQAGenerator

__all__ = ["FileStorage", "ImageQAGenerator", "LocalModelVLMServing_vllm", "PromptedVQAGenerator"]
