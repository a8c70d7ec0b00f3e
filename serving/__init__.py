"""The model: endpoints, the client that asks them, the server that answers."""
