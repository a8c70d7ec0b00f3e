"""Batch files instead of a server: export the requests of a run, and import their results."""
