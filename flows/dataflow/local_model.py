"""A model for the operators, served by vLLM on this machine."""

from typing import Any

from prefect.logging import get_logger

from ...serving.server.checkpoint import checkpoint_digest
from ...serving.server.launch import ServerOptions, local_checkpoint
from ...serving.server.server import VLLMServer
from ...tasks.runs.parameters import Sampling
from ..run_log import forward_logs

_servers: dict[ServerOptions, VLLMServer] = {}
"""Running servers of this process; each is stopped when the process ends."""


class LocalModelVLMServing_vllm:  # noqa: N801 - DataFlow's name
    """A model served by vLLM on this machine, from its first use until the program ends.

    Instances with the same model and server options share one server.

    Args:
        hf_model_name_or_path: path of a checkpoint, or its name on the Hub.
        hf_cache_dir: folder for downloads from the Hub.
        hf_local_dir: folder of a local checkpoint; takes precedence over the name.
        vllm_tensor_parallel_size: number of GPUs that each layer is split over.
        vllm_temperature: sampling temperature; 0 always takes the most likely token.
        vllm_top_p: probability mass to sample from.
        vllm_max_tokens: maximum tokens of a reply; a longer one is quarantined.
        vllm_top_k: number of tokens to sample from.
        vllm_repetition_penalty: 1 is no penalty.
        vllm_seed: seed of the sampling.
        vllm_max_model_len: maximum number of tokens in prompt and reply together.
        vllm_gpu_memory_utilization: fraction of a GPU's memory that vLLM may use, 0 to 1.
        python: interpreter of an environment that has vLLM.
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
        """The running server; started if necessary, which takes a minute or more and is logged."""
        server = _servers.get(self.options)
        if server is None or not server.is_alive():
            server = VLLMServer(self.options)
            with forward_logs(get_logger("dataflow")):
                server.start()
            _servers[self.options] = server
        return server

    def cleanup(self) -> None:
        """Stop the server; it is started again when used."""
        if server := _servers.pop(self.options, None):
            server.stop()

    def flow_parameters(self) -> dict[str, Any]:
        """The parameters of `image_qa` that select the model and its sampling."""
        server = self.start_serving()
        checkpoint = local_checkpoint(self.options.model)
        return {
            "endpoint": server.url,
            "model": server.model_name,
            "model_revision": checkpoint_digest(checkpoint) if checkpoint else "",
            "sampling": self.sampling,
        }
