"""What Prefect shows of a run: artifacts, events, an asset."""
