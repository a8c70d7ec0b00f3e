"""Publishes the results of a run in Prefect: artifacts, events, an asset."""
