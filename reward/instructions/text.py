"""Counting sentences and words, and separating an answer's own words from quoted ones. No downloads, no state.

All are linear in the text's length, whatever it contains: a model that is rewarded for the result wrote it.
"""

import re
import unicodedata
from functools import lru_cache

_ABBREVIATIONS = {
    "mr", "mrs", "ms", "dr", "prof", "sr", "jr", "st", "vs", "e.g", "i.e", "cf", "al", "no", "vol", "fig", "inc",
    "ltd", "co", "corp", "dept", "est", "approx", "gen", "col", "sgt", "capt", "rev", "hon", "jan", "feb", "mar", "apr",
    "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec", "u.s", "u.k", "u.n", "ph.d", "b.c", "a.d",
}  # fmt: skip
_END = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’)\]*_]*(?=\s)|[。！？।॥۔؟]+[”」』]?")
"""A run of signs is tried from its first sign only: the others end where it does."""
_AROUND = 100
"""Characters before and after a full stop that decide whether it ends a sentence."""
_WORD = re.compile(r"\w+")
_LETTERS_IN_A_ROW = re.compile(r"([^\W\d_])\1{2,}")
_LOOK_ALIKES = str.maketrans(
    "аеорсухіјѕһԁԛԝАВЕКМНОРСТУХІЈЅαεορνικΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "aeopcyxijshdqwABEKMHOPCTYXIJSaeopvikABEZHIKMNOPTYX"
)
_COMMAS = str.maketrans("\u201a\u060c\u3001\u055d", ",,,,")
_TOKEN = re.compile(r"\w+(?:[-.&]\w+)*|'\w+")
_PIECE = re.compile(r"[^ \n]{1,200}")
"""What is normalised at once: sorting a run of combining marks takes time quadratic in its length."""


def sentences(text: str) -> list[str]:
    """Sentences in order, stripped. One ends at . ! ? or their like in other scripts, before white space and no small
    letter (or any, in a text without capitals), but not after a title, an initial, a usual abbreviation or a list's
    number. A line break ends none, as with NLTK's splitter, which IFEval uses (and which counts most list numbers as
    sentences, and a text in small letters as one)."""
    found, start = [], 0
    has_capitals = text != text.lower()
    for end in _END.finditer(text):
        if _goes_on(text, start, end, has_capitals):
            continue
        found.append(text[start : end.end()].strip())
        start = end.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def _goes_on(text: str, start: int, end: re.Match[str], has_capitals: bool) -> bool:
    following = text[end.end() : end.end() + 40].lstrip()
    if has_capitals and following[:1].islower():
        return end.group()[0] == "."
    if end.group() != ".":
        return False
    before = text[max(start, end.start() - _AROUND) : end.start()]
    word = before.rsplit(None, 1)[-1].lstrip("\"'“‘([*_") if before.strip() else ""
    is_initial = len(word) == 1 and word.isupper() and word != "I"
    is_list_number = word.isdigit() and not before.strip().removesuffix(word).strip()
    return word.lower() in _ABBREVIATIONS or is_initial or is_list_number or bool(re.fullmatch(r"(\w\.)+\w", word))


def count_words(text: str) -> int:
    """Runs of word characters, as IFEval counts."""
    return len(_WORD.findall(text))


def capital_words(text: str) -> int:
    """Words all in capitals; hyphenated words are one, clitics ('M) are apart, as NLTK's tokenizer has it."""
    return sum(token.isupper() for token in _TOKEN.findall(text))


def own_words(answer: str, prompt: str) -> str:
    """The answer's own text, line by line: without sentences of four words or more that occur in the prompt, nearly
    word for word, and with once what is repeated: sentences of any length, words or phrases one behind the other, and
    letters in a row beyond two ("zzzz")."""
    asked = _asked(prompt)
    seen: set[str] = set()
    lines = []
    for line in answer.splitlines():
        kept = []
        for sentence in sentences(line):
            plain = _plain(sentence)
            if not plain or not (_quotes(plain.split(), asked) or plain in seen):
                kept.append(sentence)
            seen.add(plain)
        lines.append(_LETTERS_IN_A_ROW.sub(r"\1\1", _without_echo(" ".join(kept))))
    return "\n".join(lines)


def plain_letters(text: str) -> str:
    """The text with look-alikes for what they look like: compatibility forms (NFKC), other scripts' letters in a Latin
    word, commas of all kinds; and without invisible characters."""
    normal = _PIECE.sub(lambda piece: unicodedata.normalize("NFKC", piece.group()), text)
    seen = "".join(letter for letter in normal if unicodedata.category(letter) != "Cf")
    return _WORD.sub(lambda word: _as_latin(word.group()), seen).translate(_COMMAS)


def _as_latin(word: str) -> str:
    return word.translate(_LOOK_ALIKES) if re.search("[A-Za-z]", word) else word


@lru_cache(maxsize=256)
def _asked(prompt: str) -> frozenset[tuple[str, ...]]:
    """A prompt's word triples; a group of answers shares its prompt."""
    words = _plain(prompt).split()
    return frozenset(zip(words, words[1:], words[2:]))


def _quotes(words: list[str], asked: frozenset[tuple[str, ...]]) -> bool:
    """Whether at least three quarters of the word triples occur in the prompt."""
    triples = [*zip(words, words[1:], words[2:])]
    return len(words) >= 4 and 4 * sum(triple in asked for triple in triples) >= 3 * len(triples)


def _without_echo(line: str) -> str:
    """Without a phrase of up to eight words that immediately repeats itself, in the same case."""
    kept: list[str] = []
    plain: list[str] = []
    for word in line.split(" "):
        kept.append(word)
        plain.append(word.strip(".,;:!?…"))
        for size in range(1, min(8, len(kept) // 2) + 1):
            if plain[-size:] == plain[-2 * size : -size] and any(plain[-size:]):
                del kept[-size:], plain[-size:]
                break
    return " ".join(kept)


def _plain(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))
