# ruff: noqa: RUF001 (DeepSeek's tokens have fullwidth bars)
"""What models and their chat templates put around a reply, and a server may leave in the text."""

import re

from .labels import NUMBER, QUESTION_OR_LETTER

_REASONING = (
    *((f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "reasoning")),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<|thinking|>", "<|/thinking|>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>", "<channel|>"),
)
"""Start and end of a model's reasoning: of most models, then of Seed, MiniMax, GLM, Mistral, Kimi,
OpenThinker, Cohere and Gemma."""

_TAGS = {
    tag.casefold(): (kind, tag == pair[0]) for kind, pair in enumerate(_REASONING) for tag in pair
}
_TAG = re.compile("|".join(map(re.escape, _TAGS)), re.IGNORECASE | re.ASCII)
_NEAR = 40
"""Characters before a tag that tell whether it starts a line or is within a sentence."""

_LABEL = rf"[\W\d_]{{0,12}}+(?:{QUESTION_OR_LETTER})[^\S\n]*+{NUMBER}?(?:[^\w\s]|_|\n)"
_QUESTION = re.compile(rf"(?:^|\"){_LABEL}", re.IGNORECASE | re.MULTILINE)
"""A question's label at the start of a line, or its key in JSON."""

_WORD_BEFORE = re.compile(r"(?:[^\s.!?。！？:：>*][^\S\n]|[\"'`“‘(（«「])\Z")
_WORD_AFTER = re.compile(rf"[^\S\n]++(?!{_LABEL})[^\s*#]|[\"'`”’)）»」.,;?!]", re.IGNORECASE)

_CHANNEL = re.compile(r"<\|channel\|>([^<]{0,60}+)(?:<\|constrain\|>[^<]{0,60}+)?+<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
_BARE_CHANNELS = re.compile(r"\s*+analysis(?=\S).*?assistantfinal", re.DOTALL)
"""The same without its special tokens: "analysisThe user wants ... assistantfinalThe answer"."""

_MARKERS = re.compile(
    r"<\|(?:begin|end)_of_(?:box|solution)\|>|<\|(?:START|END)_RESPONSE\|>"
    r"|\[(?:BEGIN|END) FINAL RESPONSE\]"
)
"""Tokens around what counts: of GLM, OpenThinker, Cohere and Apriel."""

_TOKENS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>"),
    *("<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|eos|>", "<|end_of_sentence|>"),
    *("<|assistant|>", "<|user|>", "<|observation|>", "<|END_OF_TURN_TOKEN|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|turn>", "<turn|>", "<end_of_utterance>"),
    *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<bos>", "<eos>", "<pad>"),
    *("[EOS]", "[/INST]"),
)
"""Special tokens that start or end a turn."""

_BRACKETED = re.compile(r"\[/?[A-Za-z]")
"""How those of all these begin that do not begin with `<` or `◁`; lists in JSON do not."""

_ROLES = ("assistant\n", "model\n")
_WRAPPING_TAGS = ("answer", "response")


def unwrap(text: str) -> str:
    """A reply without its reasoning, channels, markers and special tokens.

    Reasoning may lack its start, which is often in the chat template, or its end. Tags stay where
    the text is about them: as words in the sentences of question-answer pairs, and within a line
    without an end.
    """
    if not ("<" in text or "◁" in text or ("[" in text and _BRACKETED.search(text))):
        return _without_bare_channels(text).strip()  # as most are
    return trim(_MARKERS.sub("", _outside_reasoning(_final_channel(text))))


def trim(text: str) -> str:
    """A text without white space, special tokens and `<answer>` tags at its ends."""
    text = text.strip()
    if text[:1] not in {"<", "["} and text[-1:] not in {">", "]"}:
        return text  # as most are
    text = _without_tokens(text)
    for tag in _WRAPPING_TAGS:
        start, end = f"<{tag}>", f"</{tag}>"
        inner = text.removeprefix(start).removesuffix(end)
        if text.startswith(start) and start not in inner and end not in inner:
            text = _without_tokens(inner)
    return text


def _final_channel(text: str) -> str:
    """What gpt-oss writes into its final channel; a text without channels as it is."""
    channels = list(_CHANNEL.finditer(text))
    if not channels:
        return _without_bare_channels(text)
    final = []
    for channel in channels:
        if channel[1].strip() == "final":
            end = _CHANNEL_END.search(text, channel.end())
            final.append(text[channel.end() : end.start() if end else len(text)])
    return "\n".join(final)


def _without_bare_channels(text: str) -> str:
    bare = _BARE_CHANNELS.match(text)
    return text[bare.end() :] if bare else text


def _outside_reasoning(text: str) -> str:
    tags = list(_TAG.finditer(text))
    if not tags:
        return text
    last_end = {kind: tag.start() for tag in tags for kind, opens in [_kind(tag)] if not opens}
    labelled = _QUESTION.search(text)
    first_label = len(text) if labelled is None else labelled.start()
    outside: list[str] = []
    position, inside, depth, has_end = 0, None, 0, True
    for tag in tags:
        kind, opens = _kind(tag)
        if inside is None:
            line = text[max(position, tag.start() - _NEAR) : tag.start()].rpartition("\n")[2]
            starts_line = not line.strip()
            is_closed = last_end.get(kind, -1) > tag.start()
            is_word = tag.start() > first_label and _is_word(line, text, tag.end())
            if is_word or (opens and not starts_line and not is_closed):
                continue  # the text is about tags
            if opens or position > 0:
                outside.append(text[position : tag.start()])
            position = tag.end()
            if opens:
                inside, depth, has_end = kind, 1, False
        elif inside == kind:
            depth += 1 if opens else -1
            if not opens:
                position, has_end = tag.end(), True
            if depth == 0:
                inside = None
    # Reasoning that mentions a start ends at the last end.
    if has_end:
        outside.append(text[position:])
    return "\n".join(outside)


def _kind(tag: re.Match[str]) -> tuple[int, bool]:
    """Which reasoning a tag belongs to, and whether it starts it."""
    return _TAGS[tag[0].casefold()]


def _is_word(line: str, text: str, end: int) -> bool:
    """Whether a tag is a word in a sentence: "It shows </think> in red".

    Args:
        line: what is before it in its line.
        text: the whole text.
        end: where the tag ends in it.
    """
    return _WORD_BEFORE.search(line) is not None and _WORD_AFTER.match(text, end) is not None


def _without_tokens(text: str) -> str:
    """The text without white space and special tokens at its ends."""
    # In HTML, <s> and </s> are a pair: it is no special token of Llama then.
    start_tokens = _TOKENS if "</s>" in text else (*_TOKENS, "<s>")
    end_tokens = _TOKENS if "<s>" in text else (*_TOKENS, "</s>")
    start, end = 0, len(text)
    while True:
        while start < end and text[end - 1].isspace():
            end -= 1
        if not text.endswith(end_tokens, start, end):
            break
        end -= next(len(token) for token in end_tokens if text.endswith(token, start, end))
    while True:
        while start < end and text[start].isspace():
            start += 1
        if not text.startswith(start_tokens, start, end):
            break
        start += next(len(token) for token in start_tokens if text.startswith(token, start, end))
        start += next((len(role) for role in _ROLES if text.startswith(role, start, end)), 0)
    return text[start:end]
