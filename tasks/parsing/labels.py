# ruff: noqa: RUF001 (labels in many scripts)
"""The words that models put before questions and answers, in the languages of most speakers."""

import re
import unicodedata

_QUESTION_WORDS = (
    *("question", "问题", "問題", "问", "問", "質問", "設問", "問い", "질문", "문제"),
    *("pregunta", "pergunta", "questão", "domanda", "frage", "vraag", "fråga", "întrebare"),
    *("вопрос", "запитання", "питання", "pytanie", "otázka", "ερώτηση", "soru", "câu hỏi"),
    *("pertanyaan", "soalan", "سؤال", "السؤال", "پرسش", "سوال", "שאלה"),
    *("प्रश्न", "सवाल", "প্রশ্ন", "คำถาม"),
)
_ANSWER_WORDS = (
    *("answer", "答案", "回答", "答", "答え", "解答", "답변", "정답", "대답", "답"),
    *("respuesta", "resposta", "réponse", "reponse", "risposta", "antwort", "antwoord", "svar"),
    *("răspuns", "ответ", "відповідь", "odpowiedź", "odpověď", "απάντηση", "cevap", "yanıt"),
    *("câu trả lời", "trả lời", "đáp án", "jawaban", "jawapan", "إجابة", "الإجابة", "جواب"),
    *("الجواب", "پاسخ", "תשובה", "उत्तर", "जवाब", "উত্তর", "คำตอบ"),
)
QUESTION_LETTERS = ("q", "س")
ANSWER_LETTERS = ("a", "r", "ج")
"""One letter for the word; R is French, for "réponse"."""


def _alternatives(words: tuple[str, ...]) -> str:
    """A regular expression for the words, composed or decomposed."""
    forms = {unicodedata.normalize(form, word) for word in words for form in ("NFC", "NFD")}
    return "|".join(sorted(map(re.escape, forms), key=lambda form: (-len(form), form)))


QUESTION = _alternatives(_QUESTION_WORDS)
ANSWER = _alternatives(_ANSWER_WORDS)
QUESTION_OR_LETTER = f"{QUESTION}|{_alternatives(QUESTION_LETTERS)}"
ANSWER_OR_LETTER = f"{ANSWER}|{_alternatives(ANSWER_LETTERS)}"

LETTER = f"(?:{_alternatives((*QUESTION_LETTERS, *ANSWER_LETTERS))})"

NUMBER = r"(?:\d{1,3}|[一二三四五六七八九十]{1,3})"
