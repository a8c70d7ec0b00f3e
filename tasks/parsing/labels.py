# ruff: noqa: RUF001 (labels in many scripts)
"""The words that models put before the parts of a pair, in the languages of most speakers."""

import re
import unicodedata
from collections.abc import Iterable

QUESTION_WORDS = (
    *("question", "问题", "問題", "问", "問", "質問", "設問", "問い", "질문", "문제"),
    *("pregunta", "pergunta", "questão", "domanda", "frage", "vraag", "fråga", "întrebare"),
    *("вопрос", "запитання", "питання", "pytanie", "otázka", "ερώτηση", "soru", "câu hỏi"),
    *("pertanyaan", "soalan", "سؤال", "السؤال", "پرسش", "سوال", "שאלה"),
    *("प्रश्न", "सवाल", "প্রশ্ন", "คำถาม"),
)
ANSWER_WORDS = (
    *("answer", "答案", "回答", "答", "答え", "解答", "답변", "정답", "대답", "답"),
    *("respuesta", "resposta", "réponse", "reponse", "risposta", "antwort", "antwoord", "svar"),
    *("răspuns", "ответ", "відповідь", "odpowiedź", "odpověď", "απάντηση", "cevap", "yanıt"),
    *("câu trả lời", "trả lời", "đáp án", "jawaban", "jawapan", "إجابة", "الإجابة", "جواب"),
    *("الجواب", "پاسخ", "תשובה", "उत्तर", "जवाब", "উত্তর", "คำตอบ"),
)
CORRECT_WORDS = (
    *("correct answer", "correct option", "correct choice", "right answer", "final answer"),
    *("正确答案", "正確答案", "正解", "정답은", "respuesta correcta", "resposta correta"),
    *("réponse correcte", "bonne réponse", "richtige antwort", "risposta corretta"),
    *("правильный ответ", "الإجابة الصحيحة", "सही उत्तर", "doğru cevap", "đáp án đúng"),
    *("jawaban yang benar", "juiste antwoord", "poprawna odpowiedź"),
)
TYPE_WORDS = (
    *(
        "type",
        "question type",
        "category",
        "kind",
        "问题类型",
        "类型",
        "類型",
        "类别",
        "题型",
        "種類",
    ),
    *("유형", "tipo", "tipo de pregunta", "tipo de pergunta", "typ", "fragetyp", "kategorie"),
    *("categoría", "categoria", "catégorie", "type de question", "тип", "тип вопроса", "категория"),
    *("النوع", "نوع السؤال", "प्रकार", "loại", "jenis", "tür"),
)
LANGUAGE_WORDS = (
    *("language", "语言", "語言", "言語", "언어", "idioma", "langue", "sprache", "lingua", "язык"),
    *("اللغة", "भाषा", "ngôn ngữ", "bahasa", "dil", "taal", "język"),
)
REASONING_WORDS = (
    *("reasoning", "rationale", "explanation", "justification", "reason", "解析", "解释", "解釋"),
    *("推理", "推理过程", "理由", "分析", "解説", "説明", "根拠", "설명", "이유", "해설", "풀이"),
    *("explicación", "razonamiento", "justificación", "explication", "raisonnement"),
    *("erklärung", "begründung", "spiegazione", "ragionamento", "explicação", "justificativa"),
    *("raciocínio", "объяснение", "пояснение", "обоснование", "рассуждение", "التفسير", "الشرح"),
    *("व्याख्या", "स्पष्टीकरण", "giải thích", "penjelasan", "açıklama", "wyjaśnienie", "uzasadnienie"),
    *("uitleg", "toelichting"),
)
OTHER_WORDS = (
    *(
        "difficulty",
        "difficulty level",
        "难度",
        "難度",
        "難易度",
        "난이도",
        "dificultad",
        "confidence",
    ),
    *("confidence score", "置信度"),
)
"""What has no column, but is no part of an answer either."""

OPTIONS_WORDS = (
    *("options", "choices", "answer choices", "answer options", "multiple choice options"),
    *("possible answers", "选项", "選項", "選択肢", "보기", "선택지", "opciones", "opções"),
    *("antwortmöglichkeiten", "optionen", "opzioni", "réponses possibles", "choix"),
    *("варианты", "варианты ответа", "варианты ответов", "الخيارات", "विकल्प", "seçenekler"),
    *("các lựa chọn", "lựa chọn", "pilihan", "opties", "odpowiedzi do wyboru"),
)
TURN_WORDS = (
    ("user", "human", "用户", "用戶", "ユーザー", "사용자", "usuario", "utilisateur", "nutzer"),
    ("assistant", "ai", "gpt", "model", "bot", "助手", "アシスタント", "asistente", "assistent"),
)
"""Who speaks in a dialogue: the one who asks, and the one who answers."""

QUESTION_LETTERS = ("q", "س")
ANSWER_LETTERS = ("a", "r", "ج")
"""One letter for the word; R is French, for "réponse"."""


def alternatives(words: Iterable[str]) -> str:
    """A regular expression for the words, composed or decomposed; the longest first."""
    forms = {unicodedata.normalize(form, word) for word in words for form in ("NFC", "NFD")}
    return "|".join(sorted(map(re.escape, forms), key=lambda form: (-len(form), form)))


QUESTION = alternatives(QUESTION_WORDS)
ANSWER = alternatives((*ANSWER_WORDS, *CORRECT_WORDS))
QUESTION_OR_LETTER = f"{QUESTION}|{alternatives(QUESTION_LETTERS)}"
ANSWER_OR_LETTER = f"{ANSWER}|{alternatives(ANSWER_LETTERS)}"

LETTER = f"(?:{alternatives((*QUESTION_LETTERS, *ANSWER_LETTERS))})"

NUMBER = r"(?:\d{1,3}|[一二三四五六七八九十]{1,3})"


def line_label(**groups: str) -> re.Pattern[str]:
    """Finds labels at the start of a line, decorated in any way that Markdown allows.

    Args:
        groups: name of a group -> its words as a regular expression. A match has one of them, and
            perhaps `emphasis`, `heading` and `number`.
    """
    # Possessive quantifiers (`*+`): backtracking through all lengths of a run would be quadratic.
    words = "|".join(f"(?P<{name}>{pattern})" for name, pattern in groups.items())
    return re.compile(
        rf"""
        ^[^\S\n]*+ (?:>[^\S\n]*+)*+ [\u200e\u200f]*+             # indentation, block quote
        (?:[-+*•][^\S\n]++)?+                                    # list mark
        (?:[(（]?\d{{1,3}}[.)）、][^\S\n]*+)?+                    # list number
        (?P<heading>\#{{1,6}}+[^\S\n]*+)?+
        (?P<emphasis>\*{{1,3}}|_{{1,3}})?
        (?:\d{{1,3}}[.)、][^\S\n]*+)?+                            # **1. Question:**
        (?P<bracket>[\[【](?!{LETTER}{NUMBER}?[\]】]))?           # but not [A], a choice
        (?=\w)(?:{words})                                        # (?=) saves trying all words
        [^\S\n]*+
        (?P<number>[(（\#.-]?{NUMBER}[)）]?)?
        (?:[^\S\n]*[(（][^()（）\n]{{1,40}}+[)）])?               # Question 1 (colour):
        (?(bracket) [\]】] (?:[:：]?(?P=emphasis))?+ (?:[^\S\n]*[:：])?+   # **[Question]:**
        | (?:
            (?P=emphasis) [^\S\n]*+ [:：]                        # **Question**:
          | [^\S\n]*+ [:：] (?:[^\S\n]*(?P=emphasis))?           # Question:   **Question:**
          | (?(number)[.)、](?!\d)(?:(?P=emphasis))?|(?!))       # Q1.   **Q1.**
          | (?P=emphasis)[^\S\n]*+$                              # **Question 1** alone in its line
          | (?(heading)[^\S\n]*+$|(?!))                          # ### Question
        ))
        """,
        re.MULTILINE | re.IGNORECASE | re.VERBOSE,
    )
