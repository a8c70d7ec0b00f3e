"""Whether an answer is none: the model sees no image or will not answer, or denies what is asked.

Both are recognised by the words of English, and by the usual ones of Chinese, French, German,
Italian, Portuguese and Spanish; refusals also by those of more languages (`refusals`). Only the
start of an answer counts.
"""

import re

from .refusals import refusal_in

UNANSWERABLE = "unanswerable"
"""Type of the pairs, and name of the style, whose right answer denies what is asked."""

_START = 300
"""Characters of an answer that are looked at."""

_UNABLE = (
    r"(?:cannot|can't|can\ not|could\ not|couldn't|unable\ to|not\ able\ to"
    r"|(?:not\ possible|impossible)\ to)"
)
_IMAGE = r"(?:images?|pictures?|photos?|photographs?|figures?|visuals?)"
_SHOWS = (
    r"(?:shows?|contains?|includes?|depicts?|ha[sv]e?|provides?|says?|tells?|reveals?|indicates?"
    r"|specify|mentions?|displays?|gives?|features?)"
)
_SEEN = (
    r"(?:shown|visible|present|depicted|pictured|seen|specified|given|mentioned|stated|indicated"
    r"|clear|known|legible|readable"
    rf"|in\ (?:the|this)\ {_IMAGE})"
)

_NO_IMAGE = re.compile(
    rf"""
    \bwithout\ (?:(?:seeing|viewing|having|access\ to|looking\ at)\ )?(?:the|an|any|your|this)
        \ (?:actual\ )?{_IMAGE}
    | \bno\ {_IMAGE}\ (?:(?:is|was|has|have|were|are|been)\ ){{0,2}}
        (?:provided|attached|shared|given|available|uploaded|included)
    | \b(?:don't|do\ not|didn't|did\ not|cannot|can't|unable\ to|not\ able\ to)
        \ (?:actually\ )?(?:see|view|have|receive|access|open)\ (?:access\ to\ )?
        (?:any|an|the|your|this)?\ ?{_IMAGE}
    | \b{_IMAGE}\ (?:is|was|seems|appears)\ (?:to\ be\ )?
        (?:missing|not\ (?:provided|attached|available|included|loading))
    | \b(?:please|could\ you|can\ you)\ (?:provide|share|upload|attach|send|describe)
    | (?:没有|未|没)(?:提供|看到|收到|上传|附上)[^。]{{0,6}}(?:图|照片) | 请(?:提供|上传|发送)
    """,
    re.VERBOSE,
)
_REFUSAL = re.compile(
    rf"""
    \b(?:i|we)\b[^.!?]{{0,40}}\b{_UNABLE}\b
    | \bas\ an?\ (?:ai|text-based|language)\b
    | 我?(?:无法|不能|没办法)(?:看到|查看|访问|回答|提供|确定|判断|识别)
    | \bno\ (?:puedo|logro)\b | \bnão\ (?:posso|consigo)\b | \bje\ ne\ (?:peux|vois|suis)\b
    | \bich\ (?:kann|sehe)\b[^.!?]{{0,40}}\b(?:nicht|kein) | \bnon\ (?:posso|riesco|vedo)\b
    """,
    re.VERBOSE,
)
_UNHELPFUL = re.compile(rf"{_UNABLE}\ (?:help|assist|comply|provide|do|discuss|engage)")

_DENIAL = re.compile(
    rf"""
    \A\W*(?:(?:no|sorry|unfortunately|in\ (?:the|this)\ {_IMAGE})\W+)?
        there(?:\ (?:is|are|was|were)|'s)(?:n't|\ (?:no|not|none|nothing))\b
    | \A\W*no\b[^.!?]{{0,60}}\b(?:is|are|can\ be)\ {_SEEN}
    | \A\W*not\ {_SEEN}
    | \A\W*(?:none|nothing|n/a|unanswerable|unknown)\W*\Z
    | \b(?:{_IMAGE}|it|this)\b[^.!?]{{0,30}}\b(?:does\ not|doesn't|do\ not|don't)
        \ (?:\w{{1,20}}\ )?{_SHOWS}\b
    | \b{_IMAGE}\b[^.!?]{{0,30}}\b{_SHOWS}\ (?:no|none|nothing)\b
    | \b(?:is|are|was|were)(?:\ not|n't)\ (?:\w{{1,20}}\ )?{_SEEN}
    | {_UNABLE}\ (?:be\ )?(?:determine|see|answer|tell|told|identif|know|infer|say|said|judge|find)
    | (?:图|照片|画面)[^。]{{0,12}}(?:没有|未显示|未出现|看不到|不包含|无法)
    | 没有(?:显示|出现|提到) | 无法(?:确定|判断|得知|看出)
    | \bno\ (?:hay|se\ (?:ve|muestra|puede|aprecia)|muestra|aparece)\b
    | \bnão\ (?:há|mostra|é\ possível|se\ vê|aparece)
    | \bil\ n'y\ a\ (?:pas|aucun) | \bne\ montre\ (?:pas|aucun) | \bn'est\ pas\ (?:visible|montr)
    | \bes\ gibt\ kein | \bzeigt\ (?:kein|nicht)
    | \bnicht\ (?:zu\ sehen|zu\ erkennen|erkennbar|sichtbar|abgebildet)
    | \bnon\ (?:c'è|ci\ sono|mostra|è\ (?:visibile|possibile))
    """,
    re.VERBOSE,
)
_UNSURE = re.compile(
    rf"""
    (?:\bnot|n't)\ (?:\w{{1,12}}\ )?(?:sure|certain|know)\b | \b(?:unsure|uncertain)\b
    | \bnot\ enough\ (?:information|details?|context|evidence|data)\b
    | \b(?:not\ clear|unclear|unknown)\ (?:whether|if|from|what|who|how|based)\b
    | \A\W*(?:it(?:'s|\ is)\ )?(?:not\ clear|unclear|unknown|unanswerable|impossible)\W*\Z
    | (?:{_UNABLE}|\b(?:hard|difficult)\ to)\ (?:be\ )?
        (?:determine|tell|told|know|say|said|judge|infer)
    """,
    re.VERBOSE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)|[。！？\n]")  # noqa: RUF001


def is_refusal(answer: str) -> bool:
    """Whether the model says that it cannot see, tell or help, so that it has not answered.

    What is said of the image ("The image does not show it.") is an answer.
    """
    start = _start(answer)
    return bool(_REFUSAL.search(start) or _NO_IMAGE.search(start) or refusal_in(answer))


def is_denial(answer: str) -> bool:
    """Whether the answer says, in its first sentence, that the image does not show what is asked.

    A model that says that it was given no image, or that will not help, denies nothing.
    """
    start = _start(answer)
    if _NO_IMAGE.search(start) or _UNHELPFUL.search(start) or refusal_in(answer):
        return False
    return bool(_DENIAL.search(_SENTENCE_END.split(start, maxsplit=1)[0]))


def is_unsure(answer: str) -> bool:
    """Whether the answer says that it is none: that is no "no", although it denies something."""
    return bool(_UNSURE.search(_start(answer))) or is_refusal(answer)


def _start(answer: str) -> str:
    return " ".join(answer[:_START].casefold().replace("’", "'").split())  # noqa: RUF001
