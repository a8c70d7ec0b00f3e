"""Question-answer pairs about your images: a Prefect flow over a vLLM server."""
