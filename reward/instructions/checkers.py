"""The 25 instruction types of IFEval (Zhou et al., arXiv 2311.07911), written from the paper and its public data.

A checker takes the answer's text and the instruction's own keywords and says whether the instruction was followed. Ids
and keywords are those of the public ``input_data.jsonl``. Where IFEval uses NLTK and langdetect, this uses the small
splitter and detector beside it. Every check takes time linear in the answer's length: an expression that could look at
the rest of the text from each of its places (an opening bracket that nothing closes) is a search for its parts instead.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nanoalign.common.errors import DataError
from nanoalign.reward.instructions.language import detect, english
from nanoalign.reward.instructions.text import capital_words, count_words, sentences

Checker = Callable[..., bool]
CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _compare(count: int, relation: str, bound: int) -> bool:
    if relation == "at least":
        return count >= bound
    if relation == "less than":
        return count < bound
    raise DataError(f"an instruction's relation is 'at least' or 'less than', not {relation!r}")


def _existence(text: str, *, keywords: Sequence[str]) -> bool:
    return all(re.search(keyword, text, re.IGNORECASE) for keyword in keywords)


def _frequency(text: str, *, keyword: str, relation: str, frequency: int) -> bool:
    return _compare(len(re.findall(keyword, text, re.IGNORECASE)), relation, frequency)


def _forbidden(text: str, *, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in forbidden_words)


def _letter_frequency(text: str, *, letter: str, let_relation: str, let_frequency: int) -> bool:
    return _compare(text.lower().count(letter.lower()), let_relation, let_frequency)


def _language(text: str, *, language: str) -> bool:
    return detect(text) == language


def _number_sentences(text: str, *, relation: str, num_sentences: int) -> bool:
    return _compare(len(sentences(text)), relation, num_sentences)


def _number_words(text: str, *, relation: str, num_words: int) -> bool:
    return _compare(count_words(text), relation, num_words)


def _number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Paragraphs are parted by ***; none but the outermost may be empty."""
    parts = [part.strip() for part in text.split("***")]
    inner = parts[1:-1]
    return all(inner) and sum(map(bool, parts)) == num_paragraphs


def _nth_paragraph(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are parted by a blank line."""
    parts = text.split("\n\n")
    if sum(bool(part.strip()) for part in parts) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    words = parts[nth_paragraph - 1].split()
    start = words[0].lstrip("'").lstrip('"') if words else ""
    return re.split(r"[.,?!'\"]", start, maxsplit=1)[0].lower() == first_word.lower()


def _placeholders(text: str, *, num_placeholders: int) -> bool:
    found = 0
    for line in text.split("\n"):
        place = 0
        while (start := line.find("[", place)) >= 0 and (end := line.find("]", start)) >= 0:
            found, place = found + 1, end + 1
    return found >= num_placeholders


def _postscript(text: str, *, postscript_marker: str) -> bool:
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(re.search(patterns.get(postscript_marker, re.escape(postscript_marker.lower())), text.lower()))


def _bullets(text: str, *, num_bullets: int) -> bool:
    stars = re.findall(r"^[^\S\n]*\*[^*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^[^\S\n]*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def _constrained(text: str) -> bool:
    return any(option in text for option in CONSTRAINED)


def _highlights(text: str, *, num_highlights: int) -> bool:
    single = [found for found in re.findall(r"\*[^\n*]*\*", text) if found.strip("*").strip()]
    double = [found for found in re.findall(r"\*\*[^\n*]*\*\*", text) if found[2:-2].strip()]
    return len(single) + len(double) >= num_highlights


def _sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)) >= num_sections


def _json(text: str) -> bool:
    body = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str) -> bool:
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end and line[start:end].lstrip("<").rstrip(">").strip():
            return True
    return False


def _two_responses(text: str) -> bool:
    """Two different answers parted by six asterisks; only the outermost parts may be empty."""
    parts = [part.strip() for part in text.split("******")]
    filled = [part for part in parts if part]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def _repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _end(text: str, *, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quotation(text: str) -> bool:
    body = text.strip()
    return len(body) > 1 and body.startswith('"') and body.endswith('"')


def _capital_words(text: str, *, capital_relation: str, capital_frequency: int) -> bool:
    return _compare(capital_words(text), capital_relation, capital_frequency)


def _capitals(text: str) -> bool:
    return text.isupper() and english(text)


def _lowercase(text: str) -> bool:
    return text.islower() and english(text)


def _no_comma(text: str) -> bool:
    return "," not in text


BY_OWN_WORDS: dict[str, Checker] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": _letter_frequency,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_words": _number_words,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:title": _title,
    "change_case:capital_word_frequency": _capital_words,
}
"""Instructions that quoted or repeated text could meet: as a reward they must hold for the answer's own words too."""
CHECKERS: dict[str, Checker] = {
    **BY_OWN_WORDS,
    "keywords:forbidden_words": _forbidden,
    "language:response_language": _language,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:json_format": _json,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end,
    "startend:quotation": _quotation,
    "change_case:english_capital": _capitals,
    "change_case:english_lowercase": _lowercase,
    "punctuation:no_comma": _no_comma,
}
"""Instruction id to its checker."""
_PARAMETERS = {
    id: frozenset(
        name for name, value in inspect.signature(check).parameters.items() if value.kind is value.KEYWORD_ONLY
    )
    for id, check in CHECKERS.items()
}


def follows(text: str, id: str, kwargs: Mapping[str, Any], *, loose: bool = False) -> bool:
    """Whether ``text`` follows one instruction; an empty answer follows none.

    Loose, as in the paper: it is enough if one of eight variants does, those without the first line, the last line,
    both, and each of these without asterisks. Null keywords are ignored (some releases fill them in). Raises DataError
    for an unknown id or keyword.
    """
    given = {key: value for key, value in kwargs.items() if value is not None}
    if id not in CHECKERS:
        raise DataError(f"unknown instruction {id!r}; known: {', '.join(sorted(CHECKERS))}")
    if given.keys() != _PARAMETERS[id]:
        raise DataError(f"instruction {id} takes {sorted(_PARAMETERS[id])}, not {sorted(given)}")
    variants = _variants(text) if loose else (text,)
    return any(bool(variant.strip()) and CHECKERS[id](variant, **given) for variant in variants)


def _variants(text: str) -> list[str]:
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return cut + [variant.replace("*", "") for variant in cut]
