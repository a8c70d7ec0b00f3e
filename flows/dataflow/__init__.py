"""The operator API of DataFlow-MM: operators, `FileStorage` and servings."""

from .api_model import APIVLMServing_openai
from .file_storage import FileStorage
from .local_model import LocalModelVLMServing_vllm
from .operators import ImageQAGenerator, PromptedVQAGenerator

__all__ = [
    "APIVLMServing_openai",
    "FileStorage",
    "ImageQAGenerator",
    "LocalModelVLMServing_vllm",
    "PromptedVQAGenerator",
]
