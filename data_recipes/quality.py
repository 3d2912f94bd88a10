"""Quality flags: cheap signs that a sample is not worth training on. Each is a heuristic, described here.

``repetition``: of a reasoning's or an answer's 5-word runs (where there are at least 50 words), fewer than 60% differ
(the repetition rules of Gopher, Rae et al. 2021, in one number). ``truncated``: the last answer, of 20 words or more,
ends in a comma, an opening bracket, an open code block, or in a line of prose (8 words, no list, table or heading)
without a closing mark. ``refusal``: an answer begins by refusing ("I'm sorry, but", "I cannot help with", "As an AI
language model"). ``empty``: an answer without a letter or a digit, or only the word none, null, nan, n/a or todo; calls
count as an answer. ``language``: the answers' prose is in another language than the row says (English, German, Spanish,
French, Italian and Portuguese by their most usual words, others by script; 20 words or 30 letters of a script at
least). ``unclosed thinking``: a thinking tag is in an answer or a reasoning, where the chat format does not write it.
``unprintable``: more than one character in 500 is a control, a private or a replacement character.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from nanoalign.data_recipes.conversation import Conversation, Message

Flag = Literal["repetition", "truncated", "refusal", "empty", "language", "unclosed thinking", "unprintable"]
FLAGS: tuple[Flag, ...] = get_args(Flag)

_WORD = re.compile(r"\w+")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff]")
_REFUSAL = re.compile(
    r"\W*(?:i(?:'|’)?m (?:very |really |so )?sorry|i apologi[sz]e|sorry)\W{1,3}(?:but )?(?:i |as an ai|this )"
    r"|\W*(?:i (?:can(?:not|'t|’t)|am unable to|am not able to|won't|won’t)|i(?:'|’)m (?:not able|unable) to)"
    r" (?:help|assist|comply|provide|fulfil|answer|do that|support|engage|create|write|generate|continue)"
    r"|\W*as an ai\b",
    re.IGNORECASE,
)
_NOTHING = ("none", "null", "nan", "na", "n a", "todo")
_LIST_LINE = re.compile(r"\s*(?:[-*•|#>]|\d+[.)])|.*\|\s*\Z")
_CODE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$(?!\s)[^$\n]+(?<!\s)\$(?!\d)|\\\[.*?\\\]|\\\(.*?\\\)|https?://\S+",
    re.DOTALL,
)
_SCRIPTS = {
    "ja": re.compile("[\u3040-\u30ff]"),
    "ko": re.compile("[\uac00-\ud7af\u1100-\u11ff]"),
    "zh": re.compile("[\u4e00-\u9fff]"),
    "ru": re.compile("[\u0400-\u04ff]"),
    "ar": re.compile("[\u0600-\u06ff]"),
    "he": re.compile("[\u0590-\u05ff]"),
    "el": re.compile("[\u0370-\u03ff]"),
    "th": re.compile("[\u0e00-\u0e7f]"),
    "hi": re.compile("[\u0900-\u097f]"),
}
_SAME_SCRIPT = {"uk": "ru", "bg": "ru", "sr": "ru", "fa": "ar", "ur": "ar", "mr": "hi", "ne": "hi"}
_LATIN = re.compile("[a-zA-Z\u00c0-\u024f]")
_USUAL = {
    "en": "the and of to in is that it for was on are with as be this have from or you not by which can",
    "de": "der die und das ist nicht ein eine zu mit den von auf für im dem sich des auch wir wird sind oder",
    "es": "el la los las de y que en un una es por con para no se del al como más pero su o lo",
    "fr": "le la les de des et est un une que en du pour dans qui pas sur au ce il nous vous plus sont",
    "it": "il la i gli le di e che è un una per con non si del della in sono da al come più ma",
    "pt": "o a os as de e que em um uma é por com para não se do da no na dos ao como mais",
}  # fmt: skip
_USUAL_WORDS = {language: frozenset(words.split()) for language, words in _USUAL.items()}


def language_of(text: str) -> str | None:
    """The language that a text's prose is in, or None where there is too little evidence: by script, else by common
    words."""
    prose = _CODE.sub(" ", text)
    counts = Counter({} if prose.isascii() else {name: len(each.findall(prose)) for name, each in _SCRIPTS.items()})
    counts["latin"] = len(prose) if prose.isascii() else len(_LATIN.findall(prose))
    if counts["ja"] * 10 > counts["zh"]:
        counts["ja"] += counts.pop("zh", 0)  # Japanese is written with Chinese characters too
    script, most = counts.most_common(1)[0]
    if script != "latin":
        return script if most >= 30 else None
    words = Counter(_WORD.findall(prose.lower()))
    if words.total() < 20:
        return None
    scores = {name: sum(words[word] for word in usual) for name, usual in _USUAL_WORDS.items()}
    first, second, *_ = sorted(scores, key=lambda name: -scores[name])
    clear = scores[first] >= 1.3 * scores[second] and scores[first] >= 0.08 * words.total()
    return first if clear else None


def _answers(conversation: Conversation) -> list[Message]:
    return [message for message in conversation.messages if message.role == "assistant"]


def _repeats(text: str) -> bool:
    words = _WORD.findall(text.lower())
    runs = [tuple(words[i : i + 5]) for i in range(len(words) - 4)] if len(words) >= 50 else []
    return len(set(runs)) < 0.6 * len(runs)


def repetition(answers: Sequence[Message], language: str) -> bool:
    """See the module's text, as for all flags."""
    return any(_repeats(text) for message in answers for text in (message.reasoning, message.content) if text)


def truncated(answers: Sequence[Message], language: str) -> bool:
    """Of the last answer only."""
    text = answers[-1].content.rstrip()
    if answers[-1].tool_calls or len(text.split()) < 20:
        return False
    if text.count("```") % 2 or text[-1] in ",;([{-":
        return True
    line = text.rpartition("\n")[2]
    in_prose = len(line.split()) >= 8 and not _LIST_LINE.match(line)
    return text[-1].isalnum() and in_prose and not _SCRIPTS["th"].match(text[-1])  # Thai sentences end without a mark


def refusal(answers: Sequence[Message], language: str) -> bool:
    """Of any answer."""
    return any(_REFUSAL.match(message.content) for message in answers)


def empty(answers: Sequence[Message], language: str) -> bool:
    """Of any answer."""
    return any(
        not message.tool_calls and " ".join(_WORD.findall(message.content.lower())) in ("", *_NOTHING)
        for message in answers
    )


def another_language(answers: Sequence[Message], language: str) -> bool:
    """Of all answers together; scripts shared by several languages count for each of them."""
    found = language_of("\n".join(message.content for message in answers))
    said = _SAME_SCRIPT.get(language, language)
    known = said in _USUAL_WORDS or said in _SCRIPTS
    return found is not None and known and found != said


def unclosed(answers: Sequence[Message], language: str) -> bool:
    """Of any answer or reasoning."""
    return any(
        tag in text for m in answers for text in (m.content, m.reasoning or "") for tag in ("<think>", "</think>")
    )


def unprintable(answers: Sequence[Message], language: str) -> bool:
    """Of any answer or reasoning."""
    texts = [text for message in answers for text in (message.content, message.reasoning) if text]
    return any(500 * len(_UNPRINTABLE.findall(text)) > len(text) for text in texts)


_CHECKS: Mapping[Flag, Callable[[Sequence[Message], str], bool]] = {
    "repetition": repetition,
    "truncated": truncated,
    "refusal": refusal,
    "empty": empty,
    "language": another_language,
    "unclosed thinking": unclosed,
    "unprintable": unprintable,
}


def flags(conversation: Conversation, only: Sequence[Flag] = FLAGS) -> list[Flag]:
    """The flags that a sample earns; none where nobody answers."""
    answers = _answers(conversation)
    return [flag for flag in only if _CHECKS[flag](answers, conversation.language)] if answers else []


class QualityFlags:
    """A filter that counts flags (``counted``, by flag, of all samples it saw) and leaves out samples with those that
    are to ``drop``."""

    def __init__(self, wanted: Mapping[Flag, Literal["count", "drop"]]) -> None:
        self.counted: Counter[str] = Counter()
        self._wanted = tuple(wanted)
        self._drop = {flag for flag, fate in wanted.items() if fate == "drop"}

    def __call__(self, conversation: Conversation) -> str | None:
        found = flags(conversation, self._wanted)
        self.counted.update(found)
        return next((f"quality: {flag}" for flag in found if flag in self._drop), None)
