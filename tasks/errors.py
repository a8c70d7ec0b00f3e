"""Errors of the steps, each with a message for the user."""

from ..serving.errors import ImageQAError


class DatasetError(ImageQAError):
    """The dataset as a whole cannot be used: missing, empty, unreadable, no image column."""


class StoreError(ImageQAError):
    """The output cannot be read or written."""
