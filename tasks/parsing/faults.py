"""What is wrong with an unusable reply, as the model is told that is asked once more."""

from ...serving.types import Completion
from ..records import Asked
from .parse import ParseSettings, fault_of
from .wrappers import unwrap


def reply_fault(completion: Completion, asked: Asked, settings: ParseSettings) -> str:
    """What is wrong with a complete reply; empty if it is usable, or the model not to blame.

    Args:
        completion: the reply; the model ended it itself.
        asked: what the row was asked.
        settings: how it is parsed.

    Returns:
        The end of a sentence that starts with "It ...".
    """
    if not unwrap(completion.text):
        # A server that takes the whole reply for reasoning does so again.
        return "" if completion.reasoning else "is empty"
    if not settings.required:
        return ""
    try:
        parsed = settings.parse(completion.text, asked)
    except Exception:
        return ""  # the parser's own fault, which parsing reports
    return "" if parsed.value else fault_of(parsed, asked.form)
