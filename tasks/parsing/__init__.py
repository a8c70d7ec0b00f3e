"""Parse: completions -> answers and failures.

In: the completions of a batch, and a parser. Out: a `ParsedBatch` in which every row is either
answered, with its question-answer pairs, or quarantined with a reason.
"""

from .parse import ParsedBatch, ParseSettings, pair_parse_settings, parse_batch

__all__ = ["ParseSettings", "ParsedBatch", "pair_parse_settings", "parse_batch"]
