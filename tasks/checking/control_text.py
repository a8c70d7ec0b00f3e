# ruff: noqa: RUF001 (punctuation of several languages)
"""Text of the machinery in a pair: special tokens, instructions of prompts, placeholders."""

import re
from collections.abc import Sequence

_RARE = re.compile(
    r"[<\[◁#\x00-\x08\x0b\x0c\x0e-\x1b\x7f\ufffd]|ASSISTANT:|\n(?:assistant|model)\n"
)
"""One of these is in every text with control text, and in few others."""

_TAGS = (
    "image|images|image_?soft_token|image_\\d{1,3}|img_\\d{1,3}|im_start|im_end|im_patch|im_col"
    "|start_of_(?:image|turn)|end_of_(?:image|turn|utterance)|fake_token_around_image|global-img"
    "|row_\\d{1,2}_col_\\d{1,2}|vision_(?:start|end|pad)|video_pad|image_pad|loc\\d{4}|seg\\d{3}"
    "|bos|eos|pad|unk|unused\\d{1,4}|think|thinking|thought|reasoning|seed:think|answer|question"
    "|tool_call|tool_response|turn|channel|0x[0-9a-f]{2}"
)
_CONTROL = re.compile(
    r"<\|[^\s|<>]{1,40}\|?>|<｜[^\s｜]{1,40}｜>"
    # In quotation marks, or called a tag, it is what the image shows.
    rf"|(?<![`\"'“‘])</?(?:{_TAGS})>(?!\s?(?:tags?|elements?|tokens?|blocks?)\b)"
    r"|</s>$|^<s>|\[/?INST\]|<</?SYS>>|\[IMG(?:_BREAK|_END)?\]|\[/?(?:TOOL_CALLS|AVAILABLE_TOOLS)\]"
    r"|◁/?think▷|(?-i:\bASSISTANT:)|#{2,3}\s?(?:Human|Assistant|Instruction|Response):"
    r"|\n(?:assistant|model)\n|[\x00-\x08\x0b\x0c\x0e-\x1b\x7f\ufffd]",
    re.IGNORECASE | re.MULTILINE,
)

_IN_QUESTION = (
    *("write one question", "write one multiple-choice question", "**question", "**answer"),
    *("question-answer pair", "question and answer pair", "qa pair", "q&a pair"),
    *("write a question", "generate a question", "different questions about the image"),
)
"""Of prompts that ask for questions; in the questions that they ask for, it is leaked."""

_ANYWHERE = (
    *("reply in this form", "reply as json", "reply with the question only"),
    *("number the questions from 1", "write nothing but the", "mark each question with"),
    *("from which vision-language models learn", "so that one has to look at it to answer"),
    *("question:**", "answer:**"),
    *("ask only about what the image shows", "you write questions and answers about images"),
)
_IN_ANSWER = (
    *("answer in one to three words", "answer in several sentences", "here is a question"),
    *("here's a question", "here are the questions", "question-answer pair", "**question:"),
)
_ANSWER_LABEL = re.compile(
    r"[\W_]{0,6}(?:answer|antwort|réponse|respuesta|答案|回答)[*_]{0,2}[:：]", re.IGNORECASE
)

_PLACEHOLDER = re.compile(
    r"[\W_]{0,4}(?:\[(?:insert|your|the|correct|add|write)?[ _]?"
    r"(?:question|answer|option|text|response)[^\]\n]{0,60}\]|<(?:question|answer|option|letter|text)>|\{{1,2}\s?[a-z_]{3,40}\s?\}{1,2}"
    r"|your (?:question|answer)(?: goes)? here)[\W_]{0,4}",
    re.IGNORECASE,
)
_SLOT = re.compile(
    r"\[(?:object|item|colou?r|subject|noun|entity|attribute|insert [^\]\n]{1,60})\]"
    r"|(?<![\w}\\])\{\{\s?[a-z_]{3,40}\s?\}\}",
    re.IGNORECASE,
)
_OPTION_NAME = re.compile(r"(?:option|choice|answer)\s?[a-j\d]|\.{3}|…", re.IGNORECASE)


def control_text_in(text: str) -> str:
    """The first special token or control character in a text; empty if there is none."""
    if _RARE.search(text) is None:
        return ""
    found = _CONTROL.search(text)
    return ascii(found[0]) if found else ""


def prompt_text_in(question: str, answer: str) -> str:
    """The first part of an instruction to the model in a pair; empty if there is none."""
    question, answer = question.casefold(), answer.casefold()
    for phrase in (*_IN_QUESTION, *_ANYWHERE):
        if phrase in question:
            return phrase
    for phrase in (*_IN_ANSWER, *_ANYWHERE):
        if phrase in answer:
            return phrase
    label = _ANSWER_LABEL.match(answer)
    return label.group() if label else ""


def placeholder_in(question: str, answer: str, options: Sequence[str]) -> str:
    """The first text that was to be replaced by something; empty if there is none."""
    for text in (question, answer, *options):
        if _PLACEHOLDER.fullmatch(text):
            return text[:80]
    if slot := _SLOT.search(question):
        return slot[0]
    is_unnamed = len(options) > 1 and all(map(_OPTION_NAME.fullmatch, options))
    return ", ".join(options)[:80] if is_unnamed else ""
