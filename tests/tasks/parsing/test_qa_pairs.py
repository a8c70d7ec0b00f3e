# ruff: noqa: RUF001 (labels in many scripts)
"""The forms in which models write question-answer pairs, and texts that are none."""

import gc
import json
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect_imageqa.tasks.parsing.choices import normal
from prefect_imageqa.tasks.parsing.qa_pairs import find_pairs, parse_answer, parse_qa_pairs
from prefect_imageqa.tasks.records import Asked, QAPair, ReplyForm

ONE = [("What is it?", "A cat.")]
TWO = [("What is it?", "A cat."), ("Where?", "On the mat.")]

FORMATS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "underscores": ("__Question:__ What is it?\n_Answer:_ A cat.", ONE),
    "headings-colon": ("## Question: What is it?\n## Answer: A cat.", ONE),
    "headings-bold": ("### **Question 1**\nWhat is it?\n### **Answer 1**\nA cat.", ONE),
    "plain": ("Question: What is it?\nAnswer: A cat.", ONE),
    "plain-lower": ("question: What is it?\nanswer: A cat.", ONE),
    "letters": ("Q: What is it?\nA: A cat.", ONE),
    "letters-mixed": ("Q: What is it?\nAnswer: A cat.", ONE),
    "letters-bracket": ("Q1) What is it?\nA1) A cat.\nQ2) Where?\nA2) On the mat.", TWO),
    "letters-bold": (
        "**Q1:** What is it?\n**A1:** A cat.\n**Q2:** Where?\n**A2:** On the mat.",
        TWO,
    ),
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
    "crlf": ("**Question:** What is it?\r\n\r\n**Answer:** A cat.\r\n", ONE),
    "value-on-next-line": ("**Question:**\nWhat is it?\n\n**Answer:**\nA cat.", ONE),
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
    "think-in-think": (
        "<think>The user mentions <think> tags</think> Question: no?\nAnswer: no\n</think>"
        "Question: What is it?\nAnswer: A cat.",
        ONE,
    ),
    "think-mentioned-in-think": (
        "Sure.\n<think>No <think> tag.\nQuestion: no?\nAnswer: no\n</think>\n"
        "Question: What is it?\nAnswer: A cat.",
        ONE,
    ),
    "think-drafts-no-start": (
        "Question: no?\nAnswer: no\nGood.\n</think>\n\nQuestion: What is it?\nAnswer: A cat.",
        ONE,
    ),
    "think-drafts-one-line": (
        "Question: no?\nAnswer: no </think> **Question:** What is it?\n**Answer:** A cat.",
        ONE,
    ),
    "think-in-answers": (
        "Q: What is it?\nA: <think>Hm, a dog?</think> A cat.\n"
        "Q: Where?\nA: <think> Hm. </think> On the mat.",
        TWO,
    ),
    "think-end-in-sentence": (
        "Question: What tag?\nAnswer: It shows </think> in red\n"
        "Question: Where?\nAnswer: On the mat.",
        [("What tag?", "It shows </think> in red"), TWO[1]],
    ),
    "think-end-in-question": (
        "### Question 1\nWhat does </think> mean?\n### Answer 1\nThe end.",
        [("What does </think> mean?", "The end.")],
    ),
    "think-start-in-sentence": (
        "Question: What tag?\nAnswer: It shows <think> in red\n"
        "Question: Where?\nAnswer: On the mat.",
        [("What tag?", "It shows <think> in red"), TWO[1]],
    ),
    "think-tags-quoted": (
        "Q: What tags?\nA: `<think>`, <think> and </think> too.\nQ: Where?\nA: On the mat.",
        [("What tags?", "`<think>`, <think> and </think> too."), TWO[1]],
    ),
    "json-think-in-values": (
        '{"pairs": [{"question": "What tag?", "answer": "It shows </think> in red"},'
        ' {"question": "And?", "answer": "<think>"}]}',
        [("What tag?", "It shows </think> in red"), ("And?", "<think>")],
    ),
    "letters-in-answer": (
        "Q: What is said?\nA: Hello\nB: Hi\nQ: Where?\nA: On the mat.",
        [("What is said?", "Hello\nB: Hi"), TWO[1]],
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
    "json-nested": (
        '{"qa_pairs": [{"Question": "What is it?", "Answer": "A cat."},'
        ' {"QUESTION": "Where?", "answer": "On the mat."}]}',
        TWO,
    ),
    "json-in-prose": ('Sure: {"question": "What is it?", "answer": "A cat."} Enjoy!', ONE),
    "brackets-bold": ("**[Question 1]:** What is it?\n**[Answer 1]** A cat.", ONE),
    "quarters-in-answer": (
        "Question: What is it?\nAnswer:\nQ1: 10\nQ2: 20\nQuestion: Where?\nAnswer: On the mat.",
        [("What is it?", "Q1: 10\nQ2: 20"), TWO[1]],
    ),
    "quarters-between-letters": (
        "Q: What is it?\nA: By quarter:\nQ1: 10\nQ2: 20",
        [("What is it?", "By quarter:\nQ1: 10\nQ2: 20")],
    ),
    "letters-after-words": (
        "Question 1: What is it?\nAnswer 1: A cat.\nQ2: Where?\nA2: On the mat.",
        TWO,
    ),
    "table-in-answer": (
        "Q: Which?\nA: These:\n| a | b |\n|---|---|\n| 1 | 2 |",
        [("Which?", "These:\n| a | b |\n|---|---|\n| 1 | 2 |")],
    ),
    "letters-dotted": ("Q.1: What is it?\nA.1: A cat.\nQ-2: Where?\nA-2: On the mat.", TWO),
    "table-without-frame": (
        "问题 | 答案\n--- | ---\nWhat is it? | A \\| cat.\n",
        [("What is it?", "A | cat.")],
    ),
    "one-line-bold": ("**Question:** What is it? **Answer:** A cat.", ONE),
    "one-line-each": ("Q1: What is it? A1: A cat.\nQ2: Where? A2: On the mat.", TWO),
    "one-line-numbered": (
        "Question 1: What is it? Answer 1: A cat. Question 2: Where? Answer 2: On the mat.",
        TWO,
    ),
    "japanese-short": ("問：何？ 答え：猫", [("何？", "猫")]),
    "french-letters": ("Q : Où ?\nR : Là.", [("Où ?", "Là.")]),
    "french-decomposed": (
        unicodedata.normalize("NFD", "Question : Ou ?\nRéponse : La."),
        [("Ou ?", "La.")],
    ),
    "arabic-one-line": ("سؤال: ما هذا؟ جواب: قطة.", [("ما هذا؟", "قطة.")]),
    "arabic-letters-marked": ("\u200fس: ما هذا؟\n\u200fج: قطة.", [("ما هذا؟", "قطة.")]),
    "dutch": ("Vraag: Wat?\nAntwoord: Kat.", [("Wat?", "Kat.")]),
    "polish": ("Pytanie: Co?\nOdpowiedź: Kot.", [("Co?", "Kot.")]),
    "tags-in-a-list": (
        "<qa><question>What is it?</question><answer>A cat.</answer></qa>\n"
        "<qa><question>Where?</question><answer>On the mat.</answer></qa>",
        TWO,
    ),
    "answer-tag-in-value": ("Q: What is it?\nA: <answer>A cat.</answer></s>", ONE),
    "title-and-label": ("### Question 1\n**Question:** What is it?\n**Answer:** A cat.", ONE),
    "html-and-latex": (
        "Q: What is $\\frac{1}{2}$?\nA: <b>Half</b>, <s>two</s> $\\theta$ `<think` </b>",
        [("What is $\\frac{1}{2}$?", "<b>Half</b>, <s>two</s> $\\theta$ `<think` </b>")],
    ),
    "json-numbered-words": (
        '{"question_1": "What is it?", "answer_1": "A cat.", '
        '"Question 2": "Where?", "Answer 2": "On the mat."}',
        TWO,
    ),
    "json-french": ('{"question": "What is it?", "réponse": "A cat."}', ONE),
    "json-fullwidth": ("{“问题”：“什么？”，“答案”：“猫”}", [("什么？", "猫")]),
    "json-line-breaks": (
        '{"question": "What is it?", "answer": "A cat.\nIt sits.\\nStill."}',
        [("What is it?", "A cat.\nIt sits.\nStill.")],
    ),
    "json-latex": (
        r'{"question": "$\frac{1}{2} \times \theta$?", "answer": "$\beta + \nu \rho \alpha$"}',
        [(r"$\frac{1}{2} \times \theta$?", r"$\beta + \nu \rho \alpha$")],
    ),
    "json-latex-doubled": (
        r'{"question": "$\\frac{1}{2}$?", "answer": "\\(\\nu\\) and\nname"}',
        [(r"$\frac{1}{2}$?", "\\(\\nu\\) and\nname")],
    ),
    "json-line-breaks-before-words": (
        r'{"question": "Which?\na) red\nb) tan\ne) neither", "answer": "e)\nnot\tred"}',
        [("Which?\na) red\nb) tan\ne) neither", "e)\nnot\tred")],
    ),
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
    "table-of-others": "| Name | Answer |\n|---|---|\n| What? | That. |",
    "table-without-rule": "| Question | Answer |\n| What? | That. |",
    "prose-with-labels": "I have a question: what is it? My answer: a cat.",
    "sentence-with-labels": "A question. Answer: none.",
    "quoted-labels": "The text says 'Question: What? Answer: That.'",
    "label-without-sentence-end": "Question: What is in the Answer: key",
    "unrelated-letters": "R: 5 ohm\nQ: 3 W",
    "one-line-choices": "Q: Which one? A: cat B: dog",
    "only-thinking-aloud": "[THINK]Q: What?\nA: That.[/THINK]",
    "only-analysis": "<|channel|>analysis<|message|>Q: What?\nA: That.",
    "tag-without-answer": "<question>What?</question>",
    "tags-the-wrong-way": "<answer>That.</answer><question>What?</question>",
    "json-cut": '{"question": "What?", "answer": "Tha',
    "json-list": '{"question": "What?", "answer": ["This", "That"]}',
    "json-coordinates": '{"q": 1, "r": 2}',
    "json-uneven-lists": '{"questions": ["What?", "Where?"], "answers": ["That."]}',
    "json-end-not-clear": '{"question": "What?", "answer": "a", "b": c"}',
    "only-thinking": "<think>Question: What?\nAnswer: That.",
    "json-empty-values": '{"question": " ", "answer": "A cat."}',
    "json-null": '{"question": "What is it?", "answer": null}',
    "json-other": '{"caption": "A cat."}',
}


CHOICES = {
    "letters-and-colons": (
        "Q: Which?\nA: cat\nB: dog\nAnswer: B",
        [QAPair("Which?", "dog", options=("cat", "dog"), correct="B")],
    ),
    "letters-after-a-number": (
        "**Q1:** Which?\nA: red\nB: blue\n**A1:** red\n**Q2:** Where?\n**A2:** On the mat.",
        [QAPair("Which?", "red", options=("red", "blue"), correct="A"), QAPair(*TWO[1])],
    ),
    "in-a-list": (
        "Q: Which?\n\n- **A:** cat\n- **B:** dog\n\n**Answer:** B",
        [QAPair("Which?", "dog", options=("cat", "dog"), correct="B")],
    ),
    "and-a-letter-for-the-answer": (
        "Q: Which?\nA: cat\nB. dog\nC. cow\nA: B\nQ: Where?\nA: On the mat.",
        [QAPair("Which?", "dog", options=("cat", "dog", "cow"), correct="B"), QAPair(*TWO[1])],
    ),
    "in-brackets": (
        "Q: Which?\n[A] cat\n[B] dog\nAnswer: B",
        [QAPair("Which?", "dog", options=("cat", "dog"), correct="B")],
    ),
    "in-one-line": (
        "Q: Which? A: cat B: dog\nAnswer: B",
        [QAPair("Which?", "dog", options=("cat", "dog"), correct="B")],
    ),
    "and-an-article": (
        "Question: What is it?\n(a) dog\n(b) cat\nAnswer: A cat\n\nIt sits.",
        [QAPair("What is it?", "cat", options=("dog", "cat"), correct="B", reasoning="It sits.")],
    ),
    "no-choices-in-a-sentence": (
        "Question: Is it (a) a cat or (b) a dog?\nAnswer: (a)",
        [QAPair("Is it (a) a cat or (b) a dog?", "(a)")],
    ),
    "options-twice": (
        '{"question": "Which?", "options": ["a cat", "A cat."], "answer": "a cat"}',
        [QAPair("Which?\nA. a cat\nB. A cat.", "a cat")],
    ),
    "a-single-option": (
        '{"question": "Which?", "options": ["cat"], "answer": "cat"}',
        [QAPair("Which?", "cat")],
    ),
}


@pytest.mark.parametrize(("text", "expected"), CHOICES.values(), ids=CHOICES.keys())
def test_options_are_kept_apart_if_one_of_them_is_the_answer(
    text: str, expected: list[QAPair]
) -> None:
    assert find_pairs(text).pairs == expected


@pytest.mark.parametrize(("text", "expected"), FORMATS.values(), ids=FORMATS.keys())
def test_pairs_are_parsed_from_many_formats(text: str, expected: list[tuple[str, str]]) -> None:
    found = find_pairs(text)
    assert found.pairs == [QAPair(*pair) for pair in expected]
    assert found.lost == (1 if "corrupted" in text or "oops" in text else 0)


@pytest.mark.parametrize("text", NO_PAIRS.values(), ids=NO_PAIRS.keys())
def test_no_pairs_are_invented(text: str) -> None:
    assert parse_qa_pairs(text) == []


# The first word is one that no label, rule or title starts with; the rest of a line is arbitrary.
_line = st.builds(
    "{} {}.".format,
    st.sampled_from(["It", "42", '"Yes"', "3.5", "红色", "(b)", "Éa:", "The answer:"]),
    st.text(
        st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="<[◁?!|;"),
        max_size=20,
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


_option = st.builds("{} {}".format, st.sampled_from(["red", "3.5", "红色", "on", "$5"]), _line)
_choices = st.builds(
    lambda question, options, right: QAPair(
        question,
        options[right % len(options)],
        options=tuple(options),
        correct="ABCDE"[right % len(options)],
    ),
    _line.filter(lambda line: "|" not in line),
    st.lists(_option, min_size=2, max_size=5, unique_by=normal),
    st.integers(0, 4),
)


def _as_choices(option: str, answer: str) -> Callable[[QAPair], str]:
    def render(pair: QAPair) -> str:
        lines = [
            option.format(m=mark, s=mark.lower(), o=text)
            for mark, text in zip("ABCDE", pair.options, strict=False)
        ]
        said = answer.format(m=pair.correct, s=pair.correct.lower(), o=pair.answer)
        return "\n".join((f"**Question:** {pair.question}", *lines, f"**Answer:** {said}"))

    return render


CHOICE_RENDERERS: dict[str, Callable[[QAPair], str]] = {
    "letters": _as_choices("{m}. {o}", "{m}"),
    "brackets": _as_choices("({s}) {o}", "({s})"),
    "bold-list": _as_choices("- **{m})** {o}", "**{m}. {o}**"),
    "text": _as_choices("{m}. {o}", "{o}"),
    "sentence": _as_choices("{m}: {o}", "The correct answer is {m}."),
    "json": lambda pair: json.dumps(
        {"question": pair.question, "options": pair.options, "correct": pair.correct}
    ),
    "json-text": lambda pair: json.dumps(
        {"Question": pair.question, "choices": pair.options, "answer": pair.answer}
    ),
}


@settings(deadline=None, max_examples=50)
@given(pair=_choices)
def test_multiple_choice_survives_a_round_trip_through_every_format(pair: QAPair) -> None:
    asked = Asked(form=ReplyForm.MULTIPLE_CHOICE)
    for name, render in CHOICE_RENDERERS.items():
        found = find_pairs(render(pair), asked)
        assert [(p.question, p.options, p.correct, p.answer) for p in found.pairs] == [
            (pair.question, pair.options, pair.correct, pair.answer)
        ], name


@settings(deadline=None)
@given(pairs=_pairs)
def test_pairs_survive_a_round_trip_through_every_format(pairs: list[QAPair]) -> None:
    for name, render in RENDERERS.items():
        assert parse_qa_pairs(render(pairs)) == pairs, name


_fragments = st.sampled_from(
    ["Question", "**", "Answer", ":", "：", "\n", " ", "Q1.", "A1.", "问", "答", "{", "}", "[", '"',
     "question", "answer", "```", "<think>", "</think>", "---", "###", ",", "\\", "1. ", "x", "A. ",
     "\nA. x\nB. y\n", "Options:", "options", "Type: ", "?", "\nUser: ", "\nAI: "]
)  # fmt: skip


@settings(deadline=None)
@given(text=st.text(st.characters()) | st.lists(_fragments, max_size=60).map("".join))
def test_pairs_from_any_text_are_stripped_and_complete(text: str) -> None:
    for pair in parse_qa_pairs(text):
        assert pair.question == pair.question.strip() != ""
        assert pair.answer == pair.answer.strip() != ""
    for form in set(ReplyForm) - {ReplyForm.GIVEN}:  # a given answer is not read
        for pair in find_pairs(text, Asked("What?", form=form)).pairs:
            assert pair.question == pair.question.strip() != ""
            assert (pair.answer == "") is (form is ReplyForm.QUESTIONS)
            if form is ReplyForm.MULTIPLE_CHOICE:
                assert pair.options["ABCDEFGHIJ".index(pair.correct)] == pair.answer


@pytest.fixture
def no_gc() -> Iterator[None]:
    """No garbage collection: its time depends on everything else in the process."""
    gc.disable()
    yield
    gc.enable()


HOSTILE = (
    "Question:", "Question:\n", "Q:\nA:\n", "Q:x\nA:\n\n", "A:\n", "{", '{"', '{"a":', '{"a":[',
    '{"\\"', '{"question":"q","answer":"a"}', '{"q":1,"a":{"q":1,"a":"b"}', "[", '["', "**", "*",
    "_", "#", "# ", "> ", " ", "\n", "\r\n", "1. ", "1", "---\n", "- ", "```\n", "`", "<think>",
    "</think>", "<think></think>", "问题", "问：答：", "\ud800", '"', "\\", "\\n", "'", "{'",
    '{"q":"', ',"q":"', "<question>", "<answer>", "<|channel|>", "<|channel|>final<|message|>",
    "<|im_end|>", "</s>", "Q: x? A: y. ", "? A:", "? ", "analysis", "[THINK]",
    "[Q", "Q(", "【问题】", "|", "| ", "|---|---|\n", "|a|b|\n", "A: x\nB: y\n", "\\ne $x",
    "\\ne \\(", "\\ne \\[x", "\\ne \\\\( $$", "x <think> ", "a </think> b",
)  # fmt: skip
HOSTILE_IN_A_FORM = (
    "A. ", "A. x\n", "A. x\nB. x\n", "- A) x\n", "(a) ", "(a) (b) ", "Options:\n", "Options: ",
    "- x\n", "Type: x\n", "k: v\nType: x\n", "Reasoning: x\n", "1. x\n", "x?\n", "x? ", "**x",
    '["', '"x?",', "A and ", "the answer is ", "B is correct ", " ✓", "<type>", "User: x\n",
    "User: x\nAI: y\n", " \n", "``` \n", ",", '\\"', '"a\\', "Answer: x\n",
    "x?\nA. x\nB. y\nAnswer: A\n", "- Type: x\n", "a) x\n1. x\n",
)  # fmt: skip


def slow_units(units: Sequence[str], frame: str, asked: Asked, size: int) -> list[str]:
    """The units that take more than linear time, repeated in a frame to a text of that size."""

    def seconds(unit: str, size: int) -> float:
        text = frame.replace("{}", unit * (size // len(unit)))
        start = time.thread_time()
        find_pairs(text, asked)
        return time.thread_time() - start

    def is_linear(unit: str) -> bool:
        # Twice the text should take twice the time; if it were quadratic, four times a time that is
        # far above the 20 ms added for noise.
        twice = seconds(unit, 2 * size)
        return twice < 0.02 or twice < 3 * seconds(unit, size) + 0.02

    # Several tries, because a busy machine disturbs some.
    return [unit for unit in units if not any(is_linear(unit) for _ in range(5))]


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize(
    "frame",
    ["{}", "**Q:** x\n**A: {}\nQ: z", "**Question{}x", "|Question|Answer|\n|-|-|\n{}"],
    ids=["bare", "as-answer", "within-label", "in-table"],
)
def test_time_grows_linearly_with_hostile_text(frame: str) -> None:
    assert not slow_units(HOSTILE, frame, Asked(), 25_000)


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize(
    ("form", "frame"),
    [
        (ReplyForm.PAIRS, "Q: x?\nA: {}"),
        (ReplyForm.MULTIPLE_CHOICE, "**Q:** x? {}\n**Answer:** A"),
        (ReplyForm.MULTIPLE_CHOICE, "Q: x?\nA. x\nB. y\nAnswer: {}"),
        (ReplyForm.MULTIPLE_CHOICE, '{"question": "x?", "options": "{}", "answer": "{}"}'),
        (ReplyForm.MULTIPLE_CHOICE, "x? {}"),
        (ReplyForm.DIALOGUE, "{}"),
        (ReplyForm.ANSWER, "Answer: {}"),
        (ReplyForm.QUESTIONS, "{}"),
        (ReplyForm.QUESTIONS, '["{}'),
        (ReplyForm.QUESTIONS, '{"question": "{}'),
    ],
    ids=[
        *("pairs", "options", "choice", "json-choice", "bare-choice", "dialogue", "answer"),
        *("questions", "json-questions", "json-question"),
    ],
)
def test_time_grows_linearly_in_every_form(form: ReplyForm, frame: str) -> None:
    assert not slow_units(HOSTILE_IN_A_FORM, frame, Asked("x?", form=form), 20_000)


LOST = {
    "question-without-answer": "Q: What?\nA: That.\nQ: Where?",
    "empty-answer": "Q: What?\nA: That.\nQ: Where?\nA:\n",
    "question-twice": "Q: Where?\nQ: What?\nA: That.",
    "tag-without-end": "<question>What?</question><answer>That.</answer><question>Where?",
    "table-with-a-gap": "|Question|Answer|\n|-|-|\n|What?|That.|\n|Where?| |",
    "json-cut": '[{"question": "What?", "answer": "That."}, {"question": "Where?", "answer": "On',
    "json-null": '[{"q": "What?", "a": "That."}, {"q": "Where?", "a": null}]',
    "json-lists": '{"questions": ["What?", "Where?"], "answers": ["That.", null]}',
    "placeholder": "Q: What?\nA: That.\nQ: <question>\nA: ...",
    "json-without-answer": '{"q1": "What?", "a1": "That.", "q2": "Where?"}',
}


@pytest.mark.parametrize("text", LOST.values(), ids=LOST.keys())
def test_a_pair_that_cannot_be_read_is_counted(text: str) -> None:
    found = find_pairs(text)
    assert found.pairs == [QAPair("What?", "That.")]
    assert found.lost == 1


def test_a_whole_reply_is_the_answer_to_the_rows_own_question() -> None:
    reply = "<think>Q: no\nA: no</think>\n<answer>Red,\r\nQ: or so.</answer><|im_end|>"
    assert parse_answer(reply, "What colour?") == [QAPair("What colour?", "Red,\nQ: or so.")]
    assert parse_answer(reply) == []
    assert parse_answer("<think>Hm.</think>", "What colour?") == []
