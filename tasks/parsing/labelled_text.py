# ruff: noqa: RUF001, RUF002 (Chinese replies use fullwidth punctuation)
"""Completion text -> question-answer pairs: pure functions, no I/O.

Every function here handles any text in linear time: models get stuck in loops, and a text in an
untrusted image can dictate what the model writes.
"""

import re
from itertools import chain
from re import Match

from ..records import QAPair
from .json_text import json_pairs

PARSER_VERSION = 1
"""Bumped when `parse_qa_pairs` changes its results, so that stored completions are reparsed."""


def parse_qa_pairs(text: str) -> list[QAPair]:
    """The pairs in a reply, in order; [] if there are none. Never raises.

    Recognises labelled lines (`**Question:**`, `### Answer`, `Q1.`, `A:`, `1. Question:`, `问题：`,
    `答：` ...) or, if there are none, JSON objects with these labels as keys, anywhere in the text.
    Labels count only at the start of a line. An answer extends to the next question label.
    Reasoning (`<think>`), text before the first question, and questions without an answer are
    ignored.
    """
    text = strip_reasoning(text).replace("\r\n", "\n")
    return _labelled_pairs(text) or json_pairs(text)


_THINK_TAG = re.compile(r"<(/?)think>", re.IGNORECASE)


def strip_reasoning(text: str) -> str:
    """Drop `<think>` blocks, even without a start (often in the chat template) or an end tag."""
    outside: list[str] = []
    position, inside = 0, False
    for number, tag in enumerate(_THINK_TAG.finditer(text)):
        opens = not tag[1]
        if not inside and (opens or number > 0):
            outside.append(text[position : tag.start()])
        position, inside = tag.end(), opens
    if not inside:
        outside.append(text[position:])
    return "\n".join(outside)


# Possessive quantifiers (`*+`): backtracking through all lengths of a run would be quadratic.
_LABEL = re.compile(
    r"""
    ^[^\S\n]*+ (?:>[^\S\n]*+)*+                              # indentation, block quote
    (?:[-+*•][^\S\n]++)?+                                    # list mark
    (?:[(（]?\d{1,3}[.)）、][^\S\n]*+)?+                      # list number
    (?P<heading>\#{1,6}+[^\S\n]*+)?+
    (?P<emphasis>\*{1,3}|_{1,3})?
    (?:\d{1,3}[.)、][^\S\n]*+)?+                              # **1. Question:**
    (?: (?P<question>question|问题|问|q) | (?P<answer>answer|答案|回答|答|a) )
    [^\S\n]*+
    (?P<number>[(（\#]?(?:\d{1,3}|[一二三四五六七八九十]{1,3})[)）]?)?
    (?:
        (?P=emphasis) [^\S\n]*+ [:：]                        # **Question**:
      | [^\S\n]*+ [:：] (?:[^\S\n]*(?P=emphasis))?           # Question:   **Question:**
      | (?(number)[.)、](?!\d)(?:(?P=emphasis))?|(?!))       # Q1.   **Q1.**
      | (?P=emphasis)[^\S\n]*+$                              # **Question 1** on a line of its own
      | (?(heading)[^\S\n]*+$|(?!))                          # ### Question
    )
    """,
    re.MULTILINE | re.IGNORECASE | re.VERBOSE,
)


def _labelled_pairs(text: str) -> list[QAPair]:
    pairs = []
    question: Match[str] | None = None
    answer: Match[str] | None = None
    for label in chain(_LABEL.finditer(text), [None]):
        if label is not None and label["answer"]:
            if question is not None and answer is None and _may_answer(label, question):
                answer = label
            continue
        # The next question's label, or the end of the text, ends the pair before it.
        if question is not None and answer is not None:
            end = len(text) if label is None else label.start()
            pair = QAPair(
                _value(text, question, answer.start(), before_question=False),
                _value(text, answer, end, before_question=label is not None),
            )
            if pair.question and pair.answer:
                pairs.append(pair)
        question, answer = label, None
    return pairs


def _may_answer(answer: Match[str], question: Match[str]) -> bool:
    """A bare "A:" answers only a "Q:": under "Question:" it is the first of several choices."""
    return len(answer["answer"]) > 1 or answer["answer"] == "答" or len(question["question"]) == 1


def _value(text: str, label: Match[str], end: int, *, before_question: bool) -> str:
    """The text after a label, without the decoration around it."""
    lines = text[label.end() : end].strip().split("\n")
    open_fence = sum(line.lstrip().startswith("```") for line in lines) % 2 == 1
    while lines:
        last = lines[-1].strip()
        if open_fence and last and not last.strip("`"):
            open_fence = False  # it closes a fence that was opened before the label
        elif last and not _RULE.fullmatch(last):
            is_title = before_question and len(lines) > 1 and _TITLE.fullmatch(last)
            if not is_title:
                break
        lines.pop()
    value = "\n".join(lines).strip()
    emphasis = label["emphasis"]
    if emphasis and emphasis not in text[label.end("emphasis") : label.end()]:
        value = value.removesuffix(emphasis).rstrip()  # **Question: all of it in bold**
    return value


_RULE = re.compile(r"([-*_=~])(?:[ \t]*+\1){2,}+|\*\*|__")
_TITLE = re.compile(  # "### Second pair", "**Pair 2:**": belongs to the question below it
    r"\#{1,6}[ \t].*|[*_]*+(?:QA|Q&A)?[ \t]*+(?:pair|example|item)[ \t]*+\#?\d{1,3}[.:]?[*_]*+:?",
    re.IGNORECASE,
)
