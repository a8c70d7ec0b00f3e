"""Parse: completions -> answers and failures.

In: the completions of a batch, and a parser. Out: every row of the batch, either answered, with its
question-answer pairs, or quarantined with a reason.
"""

from .parse import ParseSettings, pair_parse_settings, parse_completions

__all__ = ["ParseSettings", "pair_parse_settings", "parse_completions"]
