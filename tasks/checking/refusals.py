# ruff: noqa: RUF001 (punctuation of several languages)
"""Answers in which a model speaks of itself instead of the image: refusals and missing images.

Narrower than `declining`, which tells whether a question was answered at all: here, an answer that
is about the image ("I cannot tell from the image", "It is not visible") is a good one, and so is
text that is read from a sign ("Sorry, we cannot accept cards").
"""

import re

from ...serving.printable import printable

_START = 300
"""Characters of a text that are looked at."""

_IMAGE = (
    r"(?:images?|pictures?|photos?|photographs?|attachments?|files?|visual content)\b"
    r"(?! (?:of|on|above|behind|near|hanging|taped|inside|in (?:the|this|his|her) "
    r"(?!chat|conversation|message|prompt|question|request))\b)"
)
"""Not one that the image shows: "I see no picture on the wall."."""

_WHICH = r"(?:(?:the|any|an|this|that|your|attached|actual|uploaded|provided) ){0,3}+"
_CANNOT = (
    r"i(?: |'m )(?:actually |currently |simply |just )?(?:cannot|can ?not|can't|could not|couldn't"
    r"|(?:am |was )?(?:unable to|not able to|not capable of|not allowed to)"
    r"|do(?: not|n't) have the (?:ability|capability) (?:to|of))"
)
_GIVEN = r"(?:provided|attached|uploaded|included|shared)"
_AI = r"(?:ai\b|artificial intelligence\b|(?:large )?language model|text-based)"

_ENGLISH = (
    r"(?:i(?:'m| am) )?(?:very |so |really )?(?:sorry|afraid)\b[^.!?\n]{0,40}?\b" + _CANNOT,
    r"(?:my |i )?apologi(?:es|[sz]e)\b[^!?\n]{0,80}?\b" + _CANNOT,
    _CANNOT
    + r" (?:directly |actually |physically )?"
    + r"(?:(?:be )?(?:assist|help(?! (?:it|but|\w{1,12}ing)\b)|comply|fulfil|engage)"
    + r"|(?:see|view|access|open|load|process|analy[sz]e|interpret|display)(?:ing)? "
    + r"(?:(?:or|and) \w{1,12} )?"
    + rf"{_WHICH}{_IMAGE}"
    + r"|(?:identify|recogni[sz]e|identifying|name) (?:\w{1,12} ){0,2}(?:people|persons?"
    + r"|individuals?|faces?)\b|(?:see|view|look|do that|answer that)\W*$)",
    rf"i do(?:n't| not) (?:actually )?(?:see|have|have (?:direct )?access to) {_WHICH}{_IMAGE}",
    rf"i(?:'m| am) (?:just |only )?an? {_AI}",
    r"as an? (?:ai (?:language )?(?:model|assistant|system|chatbot)\b|ai,|(?:large )?language model"
    r"|text-based (?:ai|model|assistant))",
    rf"(?:there(?: is|'s) )?no {_IMAGE}(?: (?:was|is|has been|were))? {_GIVEN}",
    rf"the {_IMAGE} (?:was|is|has) not (?:been )?{_GIVEN}",
    r"you (?:haven't|have not|didn't|did not) (?:provided?|attach(?:ed)?|upload(?:ed)?|shared?)",
    r"(?:could|can|would) you (?:please )?(?:upload|provide|attach|share|send)"
    rf" (?:me with )?(?:the|an|your|that) {_IMAGE}",
    _CANNOT + r" answer [^.!?\n]{0,30}?\bwithout (?:\w{1,9} )?(?:the|an) (?:image|picture|photo)\b",
    r"i(?:'d| would)? need (?:to see )?(?:the|an) (?:image|picture|photo) (?:to|in order)",
    rf"please (?:upload|provide|attach|share) (?:the|an|your) {_IMAGE} (?:so|and i|for me|you)",
)
_ASIAN = (
    r"(?:很|非常|十分)?(?:抱歉|遗憾|遺憾|对不起|對不起)[，,。]?(?:但是?)?我?"
    r"(?:无法|無法|不能|不会|没有|沒有)",
    r"我(?:无法|無法|不能|没有办法)(?:直接)?(?:查看|看到|看见|识别|識別|访问|打开|分析)"
    r"(?:这张|這張|该|您的|你的|任何)?(?:图片|图像|照片|圖片|圖像|人物身份)",
    r"(?:(?:很|非常|十分)?(?:抱歉|遗憾|对不起)[，,]?)?(?:作为|我是)(?:一个|一名|一款)?(?:ai|人工智能|语言模型|大型语言|文本)",
    r"申し訳(?:ありません|ございません|ない)[^\n]{0,40}?(?:できません|ません|ない)",
    r"(?:私は)?(?:ai|人工知能|言語モデル)(?:アシスタント|モデル)?(?:として|なので|です)",
    r"画像を(?:直接)?(?:見る|確認する|表示する)ことが?は?でき",
    r"죄송(?:합니다|하지만)[^\n]{0,40}?(?:수 없|못)",
    r"(?:저는 )?(?:ai|인공지능)[^\n]{0,12}?(?:로서|이기 때문)",
    r"(?:rất )?(?:xin lỗi|tiếc)\W{1,3}[^\n]{0,20}?(?:tôi )?không thể",
    r"(?:mohon )?maaf\W{1,3}[^\n]{0,20}?saya tidak (?:dapat|bisa)",
    r"(?:क्षमा|माफ)[^\n]{0,40}?नहीं",
    r"(?:عذر[اًا]*|آسف|أعتذر|معذرة)[^\n]{0,20}?لا (?:أستطيع|يمكنني)",
)
_EUROPEAN = (
    r"lo siento\W{1,3}(?:pero )?no (?:puedo|tengo)",
    r"no puedo (?:ver|acceder a|analizar) (?:la |esta |ninguna |las )?im[aá]gen",
    r"(?:como|come|in quanto) (?:una? |uma? )?(?:model(?:o|lo) (?:de (?:lengua|linguagem)"
    r"|linguistico|di linguaggio)|ia\b|int?elig[eê]ncia artificial|intelligenza artificiale)",
    r"(?:desculpe|lamento|sinto muito)\W{1,3}(?:mas )?(?:eu )?não (?:posso|consigo)",
    r"não (?:posso|consigo) (?:ver|acessar|analisar) (?:a |esta |as )?imagem",
    r"(?:je suis )?désolée?\W{1,3}(?:mais )?je (?:ne (?:peux|suis|vois)|n'ai)",
    r"en tant qu(?:e |')(?:une? )?(?:ia\b|modèle de lang|intelligence art|assistant)",
    r"je ne (?:peux|vois) pas (?:voir |afficher )?(?:l'image|d'image|les images)",
    r"mi dispiace\W{1,3}(?:ma )?non (?:posso|riesco|sono)",
    r"(?:es )?tut mir leid\W{1,3}(?:aber )?(?:ich|das) kann",
    r"als (?:eine? )?(?:ki\b|ki-|sprachmodell|künstliche intelligenz)",
    r"ich kann (?:das|dieses|ihr|keine?) bild(?:er)? (?:leider )?(?:nicht\b|sehen|anzeigen)",
    r"(?:het )?spijt me\W{1,3}(?:maar )?ik (?:kan|ben)",
    r"(?:извините|простите|к сожалению|прошу прощения)\W{1,3}(?:но )?я не (?:могу|вижу)",
    r"(?:я )?как (?:языковая модель|ии\b|искусственный)",
    r"przepraszam\W{1,3}(?:ale )?nie (?:mogę|jestem)",
    r"(?:üzgünüm|maalesef)\W{1,3}[^\n]{0,40}?(?:yapamam|edemem|göremiyorum|yardımcı olamam)",
)
_REFUSAL = re.compile(
    r"\W{0,4}+(?:(?:oh|hmm|well|unfortunately|but|actually"
    r"|it (?:seems|looks like|appears)(?: that)?)\W{1,2})?+"
    rf"(?:{'|'.join((*_ENGLISH, *_ASIAN, *_EUROPEAN))})"
)


def refusal_in(text: str) -> str:
    """The refusal that a text begins with, in one short line; empty if there is none."""
    start = text[:_START].casefold().replace("’", "'")
    return printable(text, 80) if _REFUSAL.match(start) else ""
