# ruff: noqa: RUF001 (Chinese replies use fullwidth punctuation)
import gc
import json
import re
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect_imageqa.serving.types import Completion
from prefect_imageqa.tasks.generating.completions import StoredReply
from prefect_imageqa.tasks.parsing.labelled_text import (
    PARSER_VERSION,
    parse_qa_pairs,
    strip_reasoning,
)
from prefect_imageqa.tasks.parsing.parse import (
    Parser,
    ParseSettings,
    pair_parse_settings,
    parse_completion,
    parse_reply,
)
from prefect_imageqa.tasks.records import Answered, Kind, Problem, QAPair, Quarantined

ONE = [("What is it?", "A cat.")]
TWO = [("What is it?", "A cat."), ("Where?", "On the mat.")]

FORMATS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "bold": ("**Question:** What is it?\n**Answer:** A cat.", ONE),
    "bold-colon-outside": ("**Question**: What is it?\n\n**Answer**: A cat.", ONE),
    "italic": ("*Question:* What is it?\n*Answer:* A cat.", ONE),
    "underscores": ("__Question:__ What is it?\n_Answer:_ A cat.", ONE),
    "all-in-bold": ("**Question: What is it?**\n**Answer: A cat.**", ONE),
    "headings": ("### Question\nWhat is it?\n\n### Answer\nA cat.", ONE),
    "headings-colon": ("## Question: What is it?\n## Answer: A cat.", ONE),
    "headings-bold": ("### **Question 1**\nWhat is it?\n### **Answer 1**\nA cat.", ONE),
    "bold-own-line": ("**Question 1**\nWhat is it?\n**Answer 1**\nA cat.", ONE),
    "plain": ("Question: What is it?\nAnswer: A cat.", ONE),
    "plain-lower": ("question: What is it?\nanswer: A cat.", ONE),
    "letters": ("Q: What is it?\nA: A cat.", ONE),
    "letters-mixed": ("Q: What is it?\nAnswer: A cat.", ONE),
    "letters-numbered": ("Q1. What is it?\nA1. A cat.\nQ2. Where?\nA2. On the mat.", TWO),
    "letters-bracket": ("Q1) What is it?\nA1) A cat.\nQ2) Where?\nA2) On the mat.", TWO),
    "letters-bold": (
        "**Q1:** What is it?\n**A1:** A cat.\n**Q2:** Where?\n**A2:** On the mat.",
        TWO,
    ),
    "letters-bold-dot": ("**Q1.** What is it?\n**A1.** A cat.", ONE),
    "numbered-labels": (
        "Question 1: What is it?\nAnswer 1: A cat.\nQuestion 2: Where?\nAnswer 2: On the mat.",
        TWO,
    ),
    "numbered-hash": ("Question #1: What is it?\nAnswer #1: A cat.", ONE),
    "numbered-blocks": (
        "1. **Question:** What is it?\n   **Answer:** A cat.\n\n"
        "2. **Question:** Where?\n   **Answer:** On the mat.",
        TWO,
    ),
    "number-in-bold": ("**1. Question:** What is it?\n**Answer:** A cat.", ONE),
    "list-marks": ("- Question: What is it?\n- Answer: A cat.", ONE),
    "list-marks-bold": ("* **Question:** What is it?\n* **Answer:** A cat.", ONE),
    "quoted": ("> **Question:** What is it?\n> **Answer:** A cat.", ONE),
    "crlf": ("**Question:** What is it?\r\n\r\n**Answer:** A cat.\r\n", ONE),
    "value-on-next-line": ("**Question:**\nWhat is it?\n\n**Answer:**\nA cat.", ONE),
    "preamble": ("Sure! Here is a pair:\n\nQuestion: What is it?\nAnswer: A cat.", ONE),
    "rules": (
        "---\n**Question:** What is it?\n**Answer:** A cat.\n\n---\n\n"
        "**Question:** Where?\n**Answer:** On the mat.\n\n* * *\n",
        TWO,
    ),
    "titles": (
        "### Pair 1\nQuestion: What is it?\nAnswer: A cat.\n\n"
        "**Pair 2:**\nQuestion: Where?\nAnswer: On the mat.",
        TWO,
    ),
    "all-in-a-fence": ("```\nQuestion: What is it?\nAnswer: A cat.\n```", ONE),
    "chinese": ("问题：What is it?\n答案：A cat.", ONE),
    "chinese-short": ("问：What is it?\n答：A cat.\n问：Where?\n答：On the mat.", TWO),
    "chinese-numbered": (
        "问题1：What is it?\n答案1：A cat.\n**问题二：** Where?\n**回答二：** On the mat.",
        TWO,
    ),
    "think": (
        "<think>Question: no?\nAnswer: no.</think>\nQuestion: What is it?\nAnswer: A cat.",
        ONE,
    ),
    "think-no-start": (
        "Let me see. Q: no\nA: no</think>Question: What is it?\nAnswer: A cat.",
        ONE,
    ),
    "think-no-end": ("Question: What is it?\nAnswer: A cat.\n<think>Question: x\nAnswer: y", ONE),
    "multi-line": (
        "Question: What is it?\n(a) cat\n(b) dog\nAnswer: A cat.\n\nIt sits.\n\n\nStill.\n\n"
        "Question: Where?\nAnswer: On the mat.",
        [("What is it?\n(a) cat\n(b) dog", "A cat.\n\nIt sits.\n\n\nStill."), TWO[1]],
    ),
    "choices": (
        "Question: Which?\nA: cat\nB: dog\nAnswer: B",
        [("Which?\nA: cat\nB: dog", "B")],
    ),
    "code-in-answer": (
        "Q: How?\nA: So:\n```\nrun\n```\nQ: Where?\nA: On the mat.",
        [("How?", "So:\n```\nrun\n```"), TWO[1]],
    ),
    "numbers-and-quotes": (
        'Question: What does it "say"?\nAnswer: "3.10" — 1,000 × 5%.\n42',
        [('What does it "say"?', '"3.10" — 1,000 × 5%.\n42')],
    ),
    "bold-value": ("**Question:** What?\n**Answer:** **Red**", [("What?", "**Red**")]),
    "label-in-sentence": (
        "Question: What is in the Answer: key?\nAnswer: See the Question: field.",
        [("What is in the Answer: key?", "See the Question: field.")],
    ),
    "json-object": ('{"question": "What is it?", "answer": "A cat."}', ONE),
    "json-keys": (
        '[{"Q": "What is it?", "A": "A cat."}, {"问题": "Where?", "答案": "On the mat."}]',
        TWO,
    ),
    "json-nested": (
        '{"qa_pairs": [{"Question": "What is it?", "Answer": "A cat."},'
        ' {"QUESTION": "Where?", "answer": "On the mat."}]}',
        TWO,
    ),
    "json-lines": (
        '{"question": "What is it?", "answer": "A cat."}\n{"q": "Where?", "a": "On the mat."}\n',
        TWO,
    ),
    "json-fence": (
        'Here {you} go:\n```json\n[\n  {\n    "question": "What is it?",\n'
        '    "answer": "A cat."\n  }\n]\n```\nAnything else?',
        ONE,
    ),
    "json-in-prose": ('Sure: {"question": "What is it?", "answer": "A cat."} Enjoy!', ONE),
    "json-corrupted": ('[{"q": "What is it?", "a": "A cat."}, {"q": "Where?", "a": }, oops', ONE),
    "json-numbers": ('{"question": "What is it?", "answer": 3.10}', [("What is it?", "3.10")]),
    "json-true": ('{"question": "Red?", "answer": true}', [("Red?", "true")]),
    "json-after-answer-label": ('Answer:\n{"question": "What is it?", "answer": "A cat."}', ONE),
}

NO_PAIRS = {
    "empty": "",
    "blank": " \n\t\n",
    "prose": "A cat sits on the mat. Question and answer: none.",
    "question-only": "Question: What is it?",
    "empty-answer": "Question: What is it?\nAnswer:\n",
    "empty-question": "Question:\nAnswer: A cat.",
    "rule-for-answer": "**Question:** What is it?\n**Answer:**\n\n---\n",
    "answer-first": "Answer: A cat.\nQuestion: What is it?",
    "options": "A. cat\nB. dog",
    "one-line": "Question: What is it? Answer: A cat.",
    "only-thinking": "<think>Question: What?\nAnswer: That.",
    "json-empty-values": '{"question": " ", "answer": "A cat."}',
    "json-null": '{"question": "What is it?", "answer": null}',
    "json-other": '{"caption": "A cat."}',
}


@pytest.mark.parametrize(("text", "expected"), FORMATS.values(), ids=FORMATS.keys())
def test_pairs_are_parsed_from_many_formats(text: str, expected: list[tuple[str, str]]) -> None:
    assert parse_qa_pairs(text) == [QAPair(*pair) for pair in expected]


@pytest.mark.parametrize("text", NO_PAIRS.values(), ids=NO_PAIRS.keys())
def test_no_pairs_are_invented(text: str) -> None:
    assert parse_qa_pairs(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("a<THINK>b", "a"),
        ("<think>a<think>b</think>c", "c"),
        ("a", "a"),
    ],
    ids=["block", "no-start", "no-end", "nested", "none"],
)
def test_reasoning_is_dropped(text: str, expected: str) -> None:
    assert strip_reasoning(text).strip() == expected


# The first word is one that no label, rule or title starts with; the rest of a line is arbitrary.
_line = st.builds(
    "{} {}.".format,
    st.sampled_from(["It", "42", '"Yes"', "3.5", "红色", "(b)", "Éa:", "The answer:"]),
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=20).filter(
        lambda text: "think>" not in text.lower()
    ),
)
_value = st.lists(_line | st.just(""), min_size=1, max_size=4).map("\n".join).map(str.strip)
_pairs = st.lists(st.builds(QAPair, _value.filter(bool), _value.filter(bool)), max_size=4)


def _render(template: str, separator: str) -> Callable[[list[QAPair]], str]:
    def render(pairs: list[QAPair]) -> str:
        return separator.join(
            template.format(n=n, q=pair.question, a=pair.answer) for n, pair in enumerate(pairs, 1)
        )

    return render


def _as_objects(pairs: list[QAPair]) -> list[dict[str, str]]:
    return [{"question": pair.question, "answer": pair.answer} for pair in pairs]


RENDERERS: dict[str, Callable[[list[QAPair]], str]] = {
    "bold": _render("**Question:** {q}\n**Answer:** {a}", "\n\n---\n\n"),
    "headings": _render("### Question {n}\n{q}\n\n### Answer {n}\n{a}", "\n\n"),
    "letters": _render("Q{n}: {q}\nA{n}: {a}", "\n"),
    "numbered": _render("{n}. **Question:** {q}\n   **Answer:** {a}", "\n\n"),
    "chinese": _render("问题{n}：{q}\n答案{n}：{a}", "\n"),
    "json": lambda pairs: json.dumps(_as_objects(pairs)),
    "json-pretty": lambda pairs: json.dumps(
        {"pairs": _as_objects(pairs)}, indent=2, ensure_ascii=False
    ),
    "json-lines": lambda pairs: "\n".join(map(json.dumps, _as_objects(pairs))),
    "json-fence": lambda pairs: f"Here:\n```json\n{json.dumps(_as_objects(pairs))}\n```\nDone.",
}


@settings(deadline=None)
@given(pairs=_pairs)
def test_pairs_survive_a_round_trip_through_every_format(pairs: list[QAPair]) -> None:
    for name, render in RENDERERS.items():
        assert parse_qa_pairs(render(pairs)) == pairs, name


_fragments = st.sampled_from(
    ["Question", "**", "Answer", ":", "：", "\n", " ", "Q1.", "A1.", "问", "答", "{", "}", "[", '"',
     "question", "answer", "```", "<think>", "</think>", "---", "###", ",", "\\", "1. ", "x"]
)  # fmt: skip


@settings(deadline=None)
@given(text=st.text(st.characters()) | st.lists(_fragments, max_size=60).map("".join))
def test_pairs_from_any_text_are_stripped_and_complete(text: str) -> None:
    for pair in parse_qa_pairs(text):
        assert pair.question == pair.question.strip() != ""
        assert pair.answer == pair.answer.strip() != ""


@pytest.fixture
def no_gc() -> Iterator[None]:
    """No garbage collection: its time depends on everything else in the process."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize(
    "unit",
    ["Question:", "Question:\n", "Q:\nA:\n", "Q:x\nA:\n\n", "A:\n", "{", '{"', '{"a":', '{"a":[',
     '{"\\"', '{"question":"q","answer":"a"}', '{"q":1,"a":{"q":1,"a":"b"}', "[", '["', "**", "*",
     "_", "#", "# ", "> ", " ", "\n", "\r\n", "1. ", "1", "---\n", "- ", "```\n", "`", "<think>",
     "</think>", "<think></think>", "问题", "问：答：", "\ud800", '"', "\\"],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize(
    "frame",
    ["{}", "**Q:** x\n**A: {}\nQ: z", "**Question{}x"],
    ids=["bare", "as-answer", "within-label"],
)
def test_time_grows_linearly_with_hostile_text(unit: str, frame: str) -> None:
    def seconds(size: int) -> float:
        text = frame.replace("{}", unit * (size // len(unit)))
        start = time.thread_time()
        parse_qa_pairs(text)
        return time.thread_time() - start

    # Twice the text should take twice the time; if it were quadratic, four times a time that is far
    # above the 20 ms added for noise. Several tries, because a busy machine disturbs some.
    assert any(seconds(200_000) < 3 * seconds(100_000) + 0.02 for _ in range(5))


def _completion(text: str, finish_reason: str = "stop") -> Completion:
    return Completion(text, finish_reason, 10, 5, 0.1, "model")


REQUIRED = pair_parse_settings("qa_pairs", parse_qa_pairs)
RAW = pair_parse_settings("qa_pairs", parse_qa_pairs, require_pairs=False)
WHAT_THAT = [{"question": "What?", "answer": "That."}]


def _problem(completion: Completion, settings: ParseSettings) -> Problem:
    problem = parse_completion(completion, settings)
    assert isinstance(problem, Problem)
    assert "\n" not in problem.message
    return problem


def test_a_complete_reply_is_parsed() -> None:
    assert parse_completion(_completion("Q: What?\nA: That."), REQUIRED) == WHAT_THAT


@pytest.mark.parametrize("parsing", [REQUIRED, RAW], ids=["required", "raw"])
@pytest.mark.parametrize(
    ("text", "finish_reason", "kind", "advice"),
    [
        ("Q: What?\nA: Th", "length", Kind.TRUNCATED, "raise max_tokens"),
        ("Q: What?\nA: Th", "abort", Kind.TRUNCATED, "'abort'"),
        ("", "length", Kind.TRUNCATED, "raise max_tokens"),
        (" \n", "stop", Kind.EMPTY, "wrote nothing"),
        ("<think>Hm.</think>\n", "stop", Kind.EMPTY, "only reasoning"),
    ],
    ids=["length", "abort", "length-empty", "blank", "only-reasoning"],
)
def test_an_incomplete_reply_is_a_problem(
    text: str, finish_reason: str, kind: Kind, advice: str, parsing: ParseSettings
) -> None:
    problem = _problem(_completion(text, finish_reason), parsing)
    assert problem.kind is kind
    assert advice in problem.message


def test_a_reply_without_pairs_is_a_problem_only_if_pairs_are_required() -> None:
    completion = _completion("A cat sits on a mat.")
    problem = _problem(completion, REQUIRED)
    assert problem.kind is Kind.UNPARSED
    assert "found nothing in 20 characters" in problem.message
    assert parse_completion(completion, RAW) == []


def test_pairs_of_a_custom_parser_are_stripped_and_incomplete_ones_dropped() -> None:
    def custom(text: str) -> list[QAPair]:
        return [QAPair(f" {text} ", "a\n"), QAPair("q", " ")]

    pairs = parse_completion(_completion("q"), pair_parse_settings("custom", custom))
    assert pairs == [{"question": "q", "answer": "a"}]


def _raises(text: str) -> None:
    raise KeyError(f"no\nsuch {text}")


def _circular(text: str) -> list[object]:
    circular: list[object] = [text]
    circular.append(circular)
    return circular


@pytest.mark.parametrize(
    ("parser", "reason"),
    [
        (_raises, "KeyError"),
        (lambda text: {text}, "TypeError: Object of type set is not JSON"),
        (lambda text: QAPair(text, text), "TypeError: Object of type QAPair is not JSON"),
        (lambda text: {(text,): 1}, "TypeError"),
        (_circular, "ValueError: Circular"),
    ],
    ids=["raises", "set", "object", "key", "circular"],
)
@pytest.mark.parametrize("required", [True, False])
def test_a_failing_parser_affects_only_the_row(parser: Parser, reason: str, required: bool) -> None:
    problem = _problem(_completion("text"), ParseSettings("custom", parser, required))
    assert problem.kind is Kind.UNPARSED
    assert f"parser custom raised {reason}" in problem.message


def test_a_parser_may_return_any_json() -> None:
    verdict = ParseSettings("verdict", json.loads)
    reply = StoredReply("k", 2, 7, "d:7", _completion('{"score": 0.5, "why": ["red", null]}'))
    row = parse_reply(reply, verdict)
    assert isinstance(row, Answered)
    assert row.parsed == {"score": 0.5, "why": ["red", None]}
    with pytest.raises(TypeError):
        _ = row.pairs
    empty = parse_reply(StoredReply("k", 2, 7, "d:7", _completion("{}")), verdict)
    assert isinstance(empty, Quarantined)
    assert (empty.kind, empty.attempt, empty.text) == (Kind.UNPARSED, 2, "{}")
    assert parse_completion(_completion("{}"), ParseSettings("verdict", json.loads, False)) == {}


def test_a_label_identifies_everything_that_decides_the_result() -> None:
    def custom(text: str) -> list[QAPair]:
        return []

    labels = [
        pair_parse_settings("qa_pairs", parse_qa_pairs).label,
        pair_parse_settings("qa_pairs", parse_qa_pairs, require_pairs=False).label,
        pair_parse_settings("my.module:custom", custom).label,
        pair_parse_settings("my module custom", custom).label,
        pair_parse_settings("x/../" * 40, custom, require_pairs=False).label,
    ]
    assert labels[0] == f"qa_pairs-v{PARSER_VERSION}"
    assert labels[1] == f"{labels[0]}-raw"
    assert len(set(labels)) == len(labels)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,80}", label) for label in labels)
