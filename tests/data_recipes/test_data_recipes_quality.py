"""Quality flags: each finds what it is for, and leaves sound answers alone."""

from typing import Any

import pytest

from nanoalign.data_recipes.conversation import Conversation, Message, ToolCall
from nanoalign.data_recipes.quality import FLAGS, QualityFlags, flags, language_of

SOUND = (
    "The capital of France is Paris. It has been the seat of the government for most of the time since the tenth "
    "century, and it is also the largest city of the country, with more than two million people in it."
)
GERMAN = (
    "Die Hauptstadt von Frankreich ist Paris. Sie ist seit dem zehnten Jahrhundert fast immer der Sitz der Regierung "
    "und auch die größte Stadt des Landes, mit mehr als zwei Millionen Menschen, die in ihr leben."
)


def sample(answer: str, reasoning: str | None = None, language: str = "en", **more: Any) -> Conversation:
    return Conversation((Message("user", "q"), Message("assistant", answer, reasoning, **more)), language=language)


@pytest.mark.parametrize(
    ("conversation", "wanted"),
    [
        (sample(SOUND), []),
        (sample("4"), []),
        (sample(GERMAN, language="de"), []),
        (sample("Buy these:\n" + "\n".join(f"- fruit{n} of kind{n} that person{n} likes best" for n in range(9))), []),
        (sample("```python\nprint(1)\n```"), []),
        (sample("", tool_calls=(ToolCall("find", {}),)), []),
        (sample("I'm sorry to hear that. " + SOUND), []),
        (sample("wait, let me see. " * 40), ["repetition"]),
        (sample(SOUND, "so it is that, and then " * 40), ["repetition"]),
        (sample(SOUND.rpartition(" with")[0]), ["truncated"]),
        (sample(SOUND.rpartition(" people")[0]), ["truncated"]),
        (sample(SOUND + "\n```python\nprint("), ["truncated"]),
        (sample("I'm sorry, but I can't help with that."), ["refusal"]),
        (sample("I cannot assist with this."), ["refusal"]),
        (sample("As an AI language model, I have no opinion."), ["refusal"]),
        (sample("Sorry, I won't do it."), ["refusal"]),
        (sample("..."), ["empty"]),
        (sample(" N/A "), ["empty"]),
        (sample(GERMAN), ["language"]),
        (sample(SOUND, language="de"), ["language"]),
        (sample("これは日本語で書かれたかなり長い文章であり、フランスの首都について説明しています。"), ["language"]),
        (sample("<think>a</think> " + SOUND), ["unclosed thinking"]),
        (sample(SOUND, "so </think> it is"), ["unclosed thinking"]),
        (sample("\x00" + SOUND), ["unprintable"]),
        (sample(SOUND, "\ufffd" * 5), ["unprintable"]),
    ],
)  # fmt: skip
def test_flags(conversation: Conversation, wanted: list[str]) -> None:
    assert flags(conversation) == wanted


def test_a_prompt_earns_no_flag() -> None:
    assert flags(Conversation((Message("user", "..."),))) == []


def test_code_and_formulas_are_no_language() -> None:
    assert language_of("```\nder die das und ist nicht " + "x " * 50 + "\n```") is None
    assert language_of("`der die das`" * 20 + SOUND) == "en"
    assert language_of("short") is None


def test_flags_are_counted_and_drop_what_they_should() -> None:
    check = QualityFlags({"refusal": "drop", "unclosed thinking": "count", "empty": "drop"})
    samples = [sample("As an AI"), sample("</think>"), sample("a </think>"), sample(SOUND), sample("wait " * 99)]
    assert [check(each) for each in samples] == ["quality: refusal", None, None, None, None]
    assert check.counted == {"refusal": 1, "unclosed thinking": 2}


def test_every_flag_is_told() -> None:
    import nanoalign.data_recipes.quality as module

    assert all(f"``{flag}``:" in (module.__doc__ or "") for flag in FLAGS)
