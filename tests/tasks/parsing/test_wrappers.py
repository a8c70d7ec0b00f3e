# ruff: noqa: RUF001 (DeepSeek's tokens have fullwidth bars)
"""What models put around a reply is no part of it; what only looks like that stays."""

import pytest
from prefect_imageqa.tasks.parsing.wrappers import trim, unwrap

REASONING = [
    ("<think>", "</think>"),
    ("<THINK>", "</Think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<|thinking|>", "<|/thinking|>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought\n", "<channel|>"),
]


@pytest.mark.parametrize(("start", "end"), REASONING, ids=[start for start, _ in REASONING])
def test_reasoning_is_dropped_also_without_its_start_or_end(start: str, end: str) -> None:
    assert unwrap(f"{start}a{end}\nb") == "b"
    assert unwrap(f"a{end}b") == "b"
    assert unwrap(f"a\n{start}b") == "a"
    assert unwrap(f"a{start}b") == f"a{start}b"
    assert unwrap(f"{start}a{start}b{end}c") == "c"
    assert unwrap(f"a{start}b{end}c{start}d{end}e") == "a\nc\ne"
    assert unwrap(f"{start}a{end}") == ""
    assert unwrap(f"{start}a{start}b{end}c{end}d") == "d"
    assert unwrap(f"a\n{start}b {start} c{end}d") == "a\n\nd"
    assert unwrap(f"{start}a{end}{start}b") == ""


def test_reasoning_of_one_kind_may_quote_another() -> None:
    assert unwrap("<think>a <thinking> [/THINK] b</think>c") == "c"


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("<|begin_of_box|>A lamp<|end_of_box|>", "A lamp"),
        ("It is <|begin_of_box|>3<|end_of_box|> cm.", "It is 3 cm."),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final"
            "<|message|>b<|return|>",
            "b",
        ),
        ("<|channel|>final <|constrain|>json<|message|>{}", "{}"),
        ("a<|end|><|start|>assistant<|channel|>final<|message|>b", "b"),
        ("<|channel|>analysis<|message|>a", ""),
        ("analysisWe see a cat.assistantfinalA cat.", "A cat."),
        ("analysis of a cat", "analysis of a cat"),
        ("<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>b<|end_of_solution|>", "b"),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>", "b"),
        ("<think>a</think><answer>b</answer>", "b"),
        ("<answer> b\n", "b"),
        ("<think>a</think>\n<response>\nb\n</response>", "b"),
        ("b<|im_end|>\n<|endoftext|>", "b"),
        ("<|im_start|>assistant\nb<|im_end|>", "b"),
        ("<start_of_turn>model\nb<end_of_turn>", "b"),
        ("<s> b</s>", "<s> b</s>"),
        ("b</s>", "b"),
        ("<s>b", "b"),
        ("b<｜end▁of▁sentence｜>", "b"),
        ("b<|eot_id|>", "b"),
        ("b<end_of_utterance>", "b"),
        ("b[/INST]", "b"),
    ],
)
def test_wrappers_are_dropped(text: str, reply: str) -> None:
    assert unwrap(text) == reply


@pytest.mark.parametrize(
    "text",
    [
        "<b>Half</b> of <s>two</s> is <i>one</i>",
        "$\\frac{1}{2}$ \\[x\\] \\boxed{3}",
        "```html\n<div class='answer'><p>Red</p></div>\n```",
        "<details><summary>Why</summary>So.</details>",
        "The tag <answer> is not HTML.",
        "a < b > c <| d |> [e] <|f|>",
        "He can <think about it>.",
        "The channel <|channel|> is a token.",
        "<answer>a</answer> or <answer>b</answer>",
    ],
)
def test_everything_else_stays(text: str) -> None:
    assert unwrap(text) == text
    assert trim(text) == text
