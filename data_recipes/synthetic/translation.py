"""Samples in another language: what is prose is translated, message by message; what is code, formula, address or call
is replaced by marks that the translation must give back, each exactly once."""

import re
from collections.abc import Sequence
from dataclasses import replace

from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.quality import language_of
from nanoalign.data_recipes.synthetic.driver import Made, Maker
from nanoalign.data_recipes.synthetic.served import Query, Reply

NAMES = {"de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "ja": "Japanese"}
ASK = """Translate the text between the lines of dashes into {language}. Marks such as ⟦3⟧ stand for formulas and \
code: keep each of them once, where it belongs in the sentence. Keep line breaks and Markdown. Reply with the \
translation and nothing else.

-----
{text}
-----"""
KEPT = re.compile(
    r"```.*?```|`[^`\n]+`|\$\$.*?\$\$|\$(?!\s)[^$\n]+(?<!\s)\$(?!\d)|\\\[.*?\\\]|\\\(.*?\\\)|\\boxed\{(?:[^{}]|\{[^{}]*\})*\}"
    r"|<[/\w][^<>\n]*>|https?://\S+|⟦\d+⟧",
    re.DOTALL,
)
"""Stays as it is."""
TASKS = ("math", "code", "tools")
"""Kinds of task whose verifiers do not ask for words of the language."""


def hidden(text: str) -> tuple[str, list[str]]:
    """The text with marks in place of what stays, and what they replace."""
    parts: list[str] = []

    def mark(match: re.Match[str]) -> str:
        parts.append(match.group())
        return f"⟦{len(parts)}⟧"

    return KEPT.sub(mark, text), parts


def restored(text: str, parts: Sequence[str]) -> str | None:
    """The text with its parts back in place; None where a mark is missing, new or there twice."""
    found = re.findall(r"⟦(\d+)⟧", text)  # compared as text: a model may write any digits, and any number of them
    if sorted(found) != sorted(str(number) for number in range(1, len(parts) + 1)):
        return None
    return re.sub(r"⟦(\d+)⟧", lambda match: parts[int(match[1]) - 1], text)


def translation(sample: Conversation, language: str, tries: int, seed: int = 0) -> Maker:
    """The sample in ``language``, each text asked for up to ``tries`` times. Results of tools, calls and tools stay."""
    made = Made()
    if sample.task is not None and sample.task["kind"] not in TASKS:
        made.reasons[f"tasks of kind {sample.task['kind']} are not translated"] += 1
        return made
    texts = {
        (place, name): hidden(text)
        for place, message in enumerate(sample.messages)
        for name, text in (("content", message.content), ("reasoning", message.reasoning or ""))
        if message.role != "tool" and re.search(r"[^\W\d_]", KEPT.sub("", text))
    }
    done: dict[tuple[int, str], str] = {}
    for number in range(tries):
        left = [where for where in texts if where not in done]
        if not left:
            break
        replies = yield [
            Query(
                (Message("user", ASK.format(language=NAMES[language], text=texts[where][0])),),
                number=seed * tries + number,
            )
            for where in left
        ]
        for where, reply in zip(left, replies, strict=True):
            text, fault = _translated(reply, texts[where][1], language)
            if text is None:
                made.reasons[fault] += 1
            else:
                done[where] = text
    if len(done) == len(texts):
        messages = tuple(_with(message, place, done) for place, message in enumerate(sample.messages))
        source = f"translation:{sample.source}"
        made.samples = [
            replace(sample, messages=messages, language=language, source=source, id=f"{sample.id}-{language}")
        ]
    return made


def _translated(reply: Reply, parts: Sequence[str], language: str) -> tuple[str | None, str]:
    """The translation in a reply, or None and the reason why it may not be used."""
    if reply.message is None:
        return None, reply.fault
    text = re.sub(r"\A\s*-{3,}\n|\n-{3,}\s*\Z", "", reply.message.content)
    whole = restored(text, parts)
    if not text.strip():
        return None, "an empty answer"
    if whole is None:
        return None, "a formula or code was lost"
    if language_of(whole) not in (language, None):
        return None, f"not {NAMES[language]}"
    return whole, ""


def _with(message: Message, place: int, done: dict[tuple[int, str], str]) -> Message:
    return replace(
        message,
        content=done.get((place, "content"), message.content),
        reasoning=done.get((place, "reasoning"), message.reasoning),
    )
