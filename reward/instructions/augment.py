"""Adds instructions that a program can check to any prompt, as the paper did with 16,000 LMSYS-Chat prompts."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.data_recipes.conversation import Conversation

_KEYWORDS = ("river", "morning", "garden", "silver", "bridge", "winter", "music", "harbor", "lantern", "window")
_FORBIDDEN = ("very", "really", "thing", "stuff", "maybe", "simply", "obviously", "literally", "basically", "amazing")
_PHRASES = ("That is all for now.", "I hope this helps.", "Is there anything else?", "Thank you for reading.")
_LANGUAGES = {"de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese", "fi": "Finnish"}


@dataclass(frozen=True)
class _Kind:
    """One way to ask: draws keywords, words the request, and names what it constrains. Two instructions with a
    constraint in common may contradict each other and are never combined."""

    draw: Callable[[random.Random], dict[str, Any]]
    wordings: tuple[str, ...]
    claims: frozenset[str]


def _kind(claims: str, draw: Callable[[random.Random], dict[str, Any]], *wordings: str) -> _Kind:
    return _Kind(draw, wordings, frozenset(claims.split()))


def _nothing(rng: random.Random) -> dict[str, Any]:
    return {}


def _nth(rng: random.Random) -> dict[str, Any]:
    count = rng.randint(2, 4)
    return {"num_paragraphs": count, "nth_paragraph": rng.randint(1, count), "first_word": rng.choice(_KEYWORDS)}


KINDS: dict[str, _Kind] = {
    "keywords:existence": _kind(
        "language",
        lambda rng: {"keywords": rng.sample(_KEYWORDS[:5], rng.randint(1, 3))},
        "Include the keywords {keywords}.",
        "Your answer must contain the words {keywords}.",
    ),
    "keywords:frequency": _kind(
        "language",
        lambda rng: {"keyword": rng.choice(_KEYWORDS[5:]), "relation": "at least", "frequency": rng.randint(2, 4)},
        "Use the word {keyword} {relation} {frequency} times.",
        "The word {keyword} should appear {relation} {frequency} times.",
    ),
    "keywords:forbidden_words": _kind(
        "forbidden",
        lambda rng: {"forbidden_words": rng.sample(_FORBIDDEN, rng.randint(1, 3))},
        "Do not use the words {forbidden_words}.",
        "Avoid the words {forbidden_words} altogether.",
    ),
    "keywords:letter_frequency": _kind(
        "letters",
        lambda rng: {"letter": rng.choice("bdfgmp"), "let_relation": "at least", "let_frequency": rng.randint(2, 6)},
        "The letter {letter} should appear {let_relation} {let_frequency} times.",
        "Use the letter {letter} {let_relation} {let_frequency} times.",
    ),
    "language:response_language": _kind(
        "language case",
        lambda rng: {"language": rng.choice(sorted(_LANGUAGES))},
        "Answer in {language} only.",
        "Your whole answer must be in {language}; no other language is allowed.",
    ),
    "length_constraints:number_sentences": _kind(
        "length",
        lambda rng: {"relation": rng.choice(("at least", "less than")), "num_sentences": rng.randint(4, 8)},
        "Write {relation} {num_sentences} sentences.",
        "Your answer should have {relation} {num_sentences} sentences.",
    ),
    "length_constraints:number_words": _kind(
        "length",
        lambda rng: {"relation": rng.choice(("at least", "less than")), "num_words": rng.randrange(60, 300, 20)},
        "Answer with {relation} {num_words} words.",
        "Use {relation} {num_words} words.",
    ),
    "length_constraints:number_paragraphs": _kind(
        "parts length",
        lambda rng: {"num_paragraphs": rng.randint(2, 5)},
        "Write {num_paragraphs} paragraphs, separated by ***.",
        "There should be exactly {num_paragraphs} paragraphs. Separate them with the divider ***.",
    ),
    "length_constraints:nth_paragraph_first_word": _kind(
        "parts length start language",
        _nth,
        "Write {num_paragraphs} paragraphs, separated by a blank line; paragraph {nth_paragraph} starts with the word "
        "{first_word}.",
    ),
    "detectable_content:number_placeholders": _kind(
        "",
        lambda rng: {"num_placeholders": rng.randint(1, 4)},
        "Include at least {num_placeholders} placeholders in square brackets, such as [name].",
        "Use at least {num_placeholders} placeholders represented by square brackets, such as [address].",
    ),
    "detectable_content:postscript": _kind(
        "end",
        lambda rng: {"postscript_marker": rng.choice(("P.S.", "P.P.S"))},
        "At the end, add a postscript starting with {postscript_marker}",
    ),
    "detectable_format:number_bullet_lists": _kind(
        "bullets length",
        lambda rng: {"num_bullets": rng.randint(2, 6)},
        "Your answer must have exactly {num_bullets} bullet points, written as * point.",
        "Use exactly {num_bullets} markdown bullets, such as * This is a point.",
    ),
    "detectable_format:constrained_response": _kind(
        "whole language case length start end bullets parts",
        _nothing,
        "Answer with one of: My answer is yes. My answer is no. My answer is maybe.",
    ),
    "detectable_format:number_highlighted_sections": _kind(
        "bullets",
        lambda rng: {"num_highlights": rng.randint(1, 4)},
        "Highlight at least {num_highlights} parts of your answer with markdown, like *this*.",
        "Put at least {num_highlights} phrases in markdown emphasis, as in *highlighted*.",
    ),
    "detectable_format:multiple_sections": _kind(
        "parts case",
        lambda rng: {"section_spliter": rng.choice(("Section", "Part")), "num_sections": rng.randint(2, 4)},
        "Your answer must have {num_sections} sections, the first beginning with {section_spliter} 1.",
        "Write {num_sections} sections and mark the beginning of each with {section_spliter} X, as in "
        "{section_spliter} 1.",
    ),
    "detectable_format:json_format": _kind(
        "whole comma case length start end bullets parts",
        _nothing,
        "Put your whole answer into JSON.",
        "The entire output should be in JSON format.",
    ),
    "detectable_format:title": _kind(
        "",
        _nothing,
        "Give your answer a title in double angular brackets, such as <<a title>>.",
        "Your answer must contain a title, wrapped like <<this>>.",
    ),
    "combination:two_responses": _kind(
        "whole parts length start end bullets",
        _nothing,
        "Give two different answers, separated by ******.",
        "Answer twice, in different ways, with ****** between the two and nowhere else.",
    ),
    "combination:repeat_prompt": _kind(
        "start case language comma length forbidden",
        lambda rng: {"prompt_to_repeat": ""},
        "First repeat the request above word for word, without change, then give your answer.",
        "Before you answer, repeat the request above exactly as it stands. Say nothing before that.",
    ),
    "startend:end_checker": _kind(
        "end language",
        lambda rng: {"end_phrase": rng.choice(_PHRASES)},
        "End with this exact phrase and nothing after it: {end_phrase}",
        "The very last words of your answer must be: {end_phrase}",
    ),
    "startend:quotation": _kind(
        "start end",
        _nothing,
        "Wrap your whole answer in double quotation marks.",
        "Your entire answer should stand within double quotation marks.",
    ),
    "change_case:capital_word_frequency": _kind(
        "case",
        lambda rng: {"capital_relation": "at least", "capital_frequency": rng.randint(2, 6)},
        "Use words in all capital letters {capital_relation} {capital_frequency} times.",
        "Words in all capital letters should appear {capital_relation} {capital_frequency} times.",
    ),
    "change_case:english_capital": _kind(
        "case language",
        _nothing,
        "Write in English and in capital letters only.",
        "YOUR ANSWER MUST BE ENGLISH, ALL IN CAPITALS.",
    ),
    "change_case:english_lowercase": _kind(
        "case language",
        _nothing,
        "Write in English and in lowercase letters only; no capital letters are allowed.",
        "your whole answer should be in english and in lowercase.",
    ),
    "punctuation:no_comma": _kind(
        "comma",
        _nothing,
        "Do not use any commas.",
        "Write without a single comma.",
    ),
}


def augment(
    conversation: Conversation, rng: random.Random, *, ids: Sequence[str] | None = None, most: int = 3
) -> Conversation:
    """The conversation's prompt with one to ``most`` instructions added to its last user message.

    What came after that message is dropped (it was not written to the instructions), and ``task`` becomes
    ``{"kind": "instruction", "instructions": [{"id", "kwargs"}, ...]}``. Instructions are drawn from ``ids`` (default:
    all 25 types) so that they can all be met together. Raises ConfigError for an unknown id, or where there is no user
    message.
    """
    pool = list(ids if ids is not None else KINDS)
    if unknown := set(pool) - KINDS.keys():
        raise ConfigError(f"unknown instructions {sorted(unknown)}; known: {', '.join(sorted(KINDS))}")
    places = [place for place, message in enumerate(conversation.messages) if message.role == "user"]
    if not places:
        raise ConfigError(f"{conversation.origin or conversation.id or 'conversation'}: no user message to add to")
    place = places[-1]
    request = conversation.messages[place].content
    texts, instructions = [], []
    for id in _draw_compatible(pool, rng.randint(1, most), rng):
        kwargs = KINDS[id].draw(rng)
        if id == "combination:repeat_prompt":
            kwargs = {"prompt_to_repeat": request}
        texts.append(rng.choice(KINDS[id].wordings).format(**_shown(kwargs)))
        instructions.append({"id": id, "kwargs": kwargs})
    separator = "\n\n" if len(texts) > 1 or "\n" in request else " "
    message = replace(conversation.messages[place], content=request + separator + " ".join(texts))
    return replace(
        conversation,
        messages=(*conversation.messages[:place], message),
        domain="instruction",
        task={"kind": "instruction", "instructions": instructions},
    )


def _draw_compatible(pool: list[str], count: int, rng: random.Random) -> list[str]:
    chosen: list[str] = []
    claimed: set[str] = set()
    for id in rng.sample(pool, len(pool)):
        claims = KINDS[id].claims
        alone = "whole" in claims | claimed and bool(chosen)
        if len(chosen) < count and not alone and not claims & claimed:
            chosen.append(id)
            claimed |= claims
    return chosen


def _shown(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords as they read in a request."""
    shown = {key: ", ".join(value) if isinstance(value, list) else value for key, value in kwargs.items()}
    if "language" in shown:
        shown["language"] = _LANGUAGES[shown["language"]]
    return shown
