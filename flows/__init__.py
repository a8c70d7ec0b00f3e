"""Flows, the operator API and the command line: what a user runs."""
