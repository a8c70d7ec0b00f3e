"""The vLLM server: starts, monitors, restarts and stops a `vllm serve` process."""
