"""Checks: passes over QA pairs, and plain functions, that judge them."""
