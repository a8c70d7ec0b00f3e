import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from prefect_imageqa.serving.types import Completion
from prefect_imageqa.tasks.generating.completions import StoredReply
from prefect_imageqa.tasks.parsing.parse import (
    ParseSettings,
    pair_parse_settings,
    parse_completion,
    parse_reply,
)
from prefect_imageqa.tasks.parsing.parsers import Parsed
from prefect_imageqa.tasks.parsing.qa_pairs import PARSER_VERSION, parse_answer, parse_qa_pairs
from prefect_imageqa.tasks.records import (
    Answered,
    Asked,
    Kind,
    Problem,
    QAPair,
    Quarantined,
    ReplyForm,
)


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
    reply = _completion("Q: What?\nA: That.")
    assert parse_completion(reply, REQUIRED) == Parsed(WHAT_THAT)


@pytest.mark.parametrize("parsing", [REQUIRED, RAW], ids=["required", "raw"])
@pytest.mark.parametrize(
    ("text", "finish_reason", "kind", "advice"),
    [
        ("Q: What?\nA: Th", "length", Kind.TRUNCATED, "raise max_tokens"),
        ("Q: What?\nA: Th", "abort", Kind.TRUNCATED, "'abort'"),
        ("Q: What?\nA: That.", "", Kind.TRUNCATED, "does not say why"),
        ("Q: What?\nA: That.", "content_filter", Kind.TRUNCATED, "content filter"),
        ("Q: What?\nA: That.", "repetition", Kind.TRUNCATED, "'repetition'"),
        ("I can't\nhelp.", "refusal", Kind.EMPTY, "refused to answer: I can't help."),
        ("", "tool_calls", Kind.EMPTY, "called a tool"),
        ("", "length", Kind.TRUNCATED, "raise max_tokens"),
        (" \n", "stop", Kind.EMPTY, "wrote nothing"),
        ("<think>Hm.</think>\n", "stop", Kind.EMPTY, "only reasoning"),
    ],
    ids=[
        "length",
        "abort",
        "no-reason",
        "filter",
        "repetition",
        "refusal",
        "tool",
        "length-empty",
        "blank",
        "only-reasoning",
    ],
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
    assert "the reply of 20 characters has no question with an answer" in problem.message
    assert parse_completion(completion, RAW) == Parsed([])


def test_pairs_of_a_custom_parser_are_tidied_and_incomplete_ones_dropped() -> None:
    def custom(text: str) -> list[QAPair]:
        return [QAPair(f" {text} ", "a\x0c\x1b[1m\r\nb\tc\x85\n"), QAPair("q", " \x00")]

    parsed = parse_completion(_completion("q"), pair_parse_settings("custom", custom))
    assert parsed == Parsed([{"question": "q", "answer": "a[1m\nb\tc"}])


def test_all_fields_of_a_pair_survive_being_stored() -> None:
    pair = QAPair("What?", "red", "colour", ("blue", "red"), "B", 2, "English", "It is so.")
    settings = pair_parse_settings("custom", lambda _: [pair, QAPair("Who?", "She.")])
    row = parse_reply(StoredReply("k", 0, 7, "d:7", _completion("x")), settings)
    assert isinstance(row, Answered)
    assert row.pairs == (pair, QAPair("Who?", "She."))
    assert row.parsed[1] == {"question": "Who?", "answer": "She."}
    assert json.loads(json.dumps(row.parsed)) == row.parsed


def test_half_a_surrogate_pair_is_replaced() -> None:
    reply = _completion(r'{"question": "What?", "answer": "\ud800", "reasoning": "\udfff."}')
    row = parse_reply(StoredReply("k", 0, 7, "d:7", reply), REQUIRED)
    assert isinstance(row, Answered)
    assert row.pairs == (QAPair("What?", "?", reasoning="?."),)


@pytest.mark.parametrize(
    ("text", "type_", "language"),
    [
        ("Q: What?\nA: That.", "counting", "English"),
        ("Q: What?\nA: That.\nType: Colour.\nLanguage: French", "colour", "French"),
    ],
    ids=["asked for", "own"],
)
def test_a_pair_is_of_the_type_and_language_asked_for_if_it_says_no_other(
    text: str, type_: str, language: str
) -> None:
    asked = Asked(style="knowledge@1", type="counting", language="English")
    row = parse_reply(StoredReply("k", 0, 7, "d:7", _completion(text), asked), REQUIRED)
    assert isinstance(row, Answered)
    assert row.pairs == (QAPair("What?", "That.", type=type_, language=language),)
    assert row.style == "knowledge@1"


def test_only_questions_may_lack_an_answer() -> None:
    reply = _completion("What is it?")
    questions = Asked(form=ReplyForm.QUESTIONS)
    assert parse_completion(reply, REQUIRED, questions) == Parsed(
        [{"question": "What is it?", "answer": ""}]
    )
    assert isinstance(parse_completion(reply, REQUIRED), Problem)


@pytest.mark.parametrize(
    ("text", "form", "fault"),
    [
        ("A cat.", ReplyForm.PAIRS, "has no question with an answer that can be read"),
        ("A cat.", ReplyForm.DIALOGUE, "has no question with an answer that can be read"),
        ("A cat.", ReplyForm.MULTIPLE_CHOICE, "has no question with options and the letter"),
        ("Q: x?\nA. a\nB. b\nAnswer: F", ReplyForm.MULTIPLE_CHOICE, "gives the answer 'F', which"),
        ("A cat.", ReplyForm.QUESTIONS, "has no question that can be read"),
        ('{"answer": "A c', ReplyForm.ANSWER, "is JSON that is cut off or damaged"),
    ],
)
def test_a_problem_says_what_is_wrong_with_the_reply(
    text: str, form: ReplyForm, fault: str
) -> None:
    asked = Asked("Construct a QA pair.", style="own@1", form=form)
    problem = parse_completion(_completion(text), REQUIRED, asked)
    assert isinstance(problem, Problem)
    assert f"the reply of {len(text)} characters {fault}" in problem.message
    assert "--parser answer" not in problem.message


def test_a_lost_pair_is_counted_on_the_row() -> None:
    reply = StoredReply("k", 0, 7, "d:7", _completion("Q: What?\nA: That.\nQ: Where?"))
    row = parse_reply(reply, REQUIRED)
    assert isinstance(row, Answered)
    assert (row.parsed, row.lost) == (WHAT_THAT, 1)
    problem = _problem(_completion("Q: What?"), REQUIRED)
    assert "the reply of 8 characters has no question with an answer" in problem.message


def test_the_answer_parser_takes_the_question_of_the_row() -> None:
    answer = pair_parse_settings("answer", parse_answer)
    completion = _completion("<think>Hm.</think>That.")
    reply = StoredReply("k", 0, 7, "d:7", completion, Asked("What?"))
    row = parse_reply(reply, answer)
    assert isinstance(row, Answered)
    assert row.parsed == WHAT_THAT
    json_reply = _completion('{"answer": "That."}')
    asked = Asked("What?", form=ReplyForm.ANSWER)
    assert parse_completion(json_reply, answer, asked) == Parsed(WHAT_THAT)
    assert "asks no question" in _problem(completion, answer).message


@pytest.mark.parametrize(
    ("question", "is_hinted"),
    [("What is it?", True), ("Construct a QA pair.", False), ("", False)],
    ids=["own", "prompt of the run", "none"],
)
def test_a_row_with_its_own_question_is_hinted_at_the_answer_parser(
    question: str, is_hinted: bool
) -> None:
    parsing = pair_parse_settings("qa_pairs", parse_qa_pairs, user_prompt="Construct a QA pair.")
    problem = parse_completion(_completion("A cat."), parsing, Asked(question))
    assert isinstance(problem, Problem)
    assert ("--parser answer" in problem.message) is is_hinted


def test_reasoning_is_kept_beside_the_answer() -> None:
    completion = Completion("Q: What?\nA: That.", "stop", 10, 5, 0.1, "m", reasoning="Hm.")
    row = parse_reply(StoredReply("k", 0, 7, "d:7", completion), REQUIRED)
    assert isinstance(row, Answered)
    assert (row.reasoning, row.parsed) == ("Hm.", WHAT_THAT)


@pytest.mark.parametrize(
    ("finish_reason", "kind", "advice"),
    [("stop", Kind.EMPTY, "--reasoning-parser"), ("length", Kind.TRUNCATED, "all of them reason")],
)
def test_reasoning_alone_is_a_problem_that_keeps_its_text(
    finish_reason: str, kind: Kind, advice: str
) -> None:
    reasoning = "Q: What?\nA: That."
    completion = Completion("", finish_reason, 10, 5, 0.1, "m", reasoning=reasoning)
    row = parse_reply(StoredReply("k", 0, 7, "d:7", completion), REQUIRED)
    assert isinstance(row, Quarantined)
    assert (row.kind, row.text) == (kind, reasoning)
    assert advice in row.message


def _raises(text: str) -> Parsed:
    raise KeyError(f"no\nsuch {text}")


def _circular(text: str) -> Parsed:
    circular: list[object] = [text]
    circular.append(circular)
    return Parsed(circular)


@pytest.mark.parametrize(
    ("parser", "reason"),
    [
        (_raises, "KeyError"),
        (lambda text: Parsed({text}), "TypeError: Object of type set is not JSON"),
        (lambda text: Parsed(QAPair(text, text)), "TypeError: Object of type QAPair is not JSON"),
        (lambda text: Parsed({(text,): 1}), "TypeError"),
        (_circular, "ValueError: Circular"),
    ],
    ids=["raises", "set", "object", "key", "circular"],
)
@pytest.mark.parametrize("required", [True, False])
def test_a_failing_parser_affects_only_the_row(
    parser: Callable[[str], Parsed], reason: str, required: bool
) -> None:
    parsing = ParseSettings("custom", lambda text, _: parser(text), required)
    problem = _problem(_completion("text"), parsing)
    assert problem.kind is Kind.UNPARSED
    assert f"parser custom raised {reason}" in problem.message


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"turn": -1}, "ValueError: no position"), ({"type": 5}, "TypeError")],
    ids=["turn", "type"],
)
def test_a_pair_that_cannot_be_exported_affects_only_the_row(
    fields: dict[str, Any], reason: str
) -> None:
    parsing = pair_parse_settings("custom", lambda text: [QAPair(text, text, **fields)])
    problem = _problem(_completion("text"), parsing)
    assert problem.kind is Kind.UNPARSED
    assert f"parser custom raised {reason}" in problem.message


def test_a_parser_may_return_any_json() -> None:
    def read(text: str, _asked: Asked) -> Parsed:
        return Parsed(json.loads(text))

    verdict = ParseSettings("verdict", read)
    reply = StoredReply("k", 2, 7, "d:7", _completion('{"score": 0.5, "why": ["red", null]}'))
    row = parse_reply(reply, verdict)
    assert isinstance(row, Answered)
    assert row.parsed == {"score": 0.5, "why": ["red", None]}
    with pytest.raises(TypeError):
        _ = row.pairs
    empty = parse_reply(StoredReply("k", 2, 7, "d:7", _completion("{}")), verdict)
    assert isinstance(empty, Quarantined)
    assert (empty.kind, empty.attempt, empty.text) == (Kind.UNPARSED, 2, "{}")
    assert parse_completion(_completion("{}"), ParseSettings("verdict", read, False)) == Parsed({})


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
