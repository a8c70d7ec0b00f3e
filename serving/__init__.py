"""Model serving: endpoints, the client that sends requests to them, and the vLLM server."""
