"""The steps of a run, one file a step."""
