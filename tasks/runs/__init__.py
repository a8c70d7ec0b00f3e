"""Runs: their parameters, the passes these define, and the record `runs/<id>.json`."""
