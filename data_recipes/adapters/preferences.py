"""Pairs of a chosen and a rejected answer: the chosen one is the last message, the rejected one in the task."""

import re
from itertools import pairwise
from typing import Any

from nanoalign.data_recipes.adapters.chats import sharegpt_turns
from nanoalign.data_recipes.adapters.parts import NotASample, Raw, listed, turn, with_input


def _pair(messages: list[dict[str, Any]], chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    if chosen.strip() == rejected.strip():
        raise NotASample("both answers are the same")
    if not chosen.strip() or not rejected.strip():
        raise NotASample("an answer is empty")
    task = {"kind": "preference", "rejected": rejected.strip()}
    return {**more, "messages": [*messages, turn("assistant", chosen.strip())], "task": task}


def hh_rlhf(raw: Raw) -> list[dict[str, Any]]:
    """Anthropic's pairs: two transcripts of ``Human:`` and ``Assistant:`` that differ in the last answer."""
    context, _, chosen = raw["chosen"].rpartition("\n\nAssistant:")
    other, _, rejected = raw["rejected"].rpartition("\n\nAssistant:")
    if context != other:
        raise NotASample("the two answers have different prompts")
    turns = re.split(r"\n\n(Human|Assistant):", context)[1:]
    roles = ["user" if name == "Human" else "assistant" for name in turns[::2]]
    if roles[:1] != ["user"] or any(a == b for a, b in pairwise(roles)) or roles[-1] != "user":
        raise NotASample("two turns of one speaker in a row")
    return [_pair([turn(role, text.strip()) for role, text in zip(roles, turns[1::2], strict=True)], chosen, rejected)]


def sharegpt_pair(raw: Raw) -> list[dict[str, Any]]:
    """LLaMA-Factory's pairs: ``conversations`` and a ``chosen`` and a ``rejected`` turn."""
    return [_pair(sharegpt_turns(listed(raw, "conversations")), raw["chosen"]["value"], raw["rejected"]["value"])]


def alpaca_pair(raw: Raw) -> list[dict[str, Any]]:
    """``instruction``, ``input``, ``chosen``, ``rejected``."""
    return [_pair([turn("user", with_input(raw))], raw["chosen"], raw["rejected"])]


def ultrafeedback(raw: Raw) -> list[dict[str, Any]]:
    """Binarized UltraFeedback: ``chosen`` and ``rejected`` as lists of messages."""
    *context, chosen = raw["chosen"]
    messages = [turn(message["role"], message["content"]) for message in context]
    return [_pair(messages, chosen["content"], raw["rejected"][-1]["content"], id=str(raw.get("prompt_id", "")))]


def helpsteer3(raw: Raw) -> list[dict[str, Any]]:
    """HelpSteer3 preferences: ``context``, two responses and ``overall_preference`` (-3: first, 3: second)."""
    score = raw["overall_preference"]
    if score == 0:
        raise NotASample("neither answer is preferred")
    chosen, rejected = ("response1", "response2") if score < 0 else ("response2", "response1")
    context = [turn(message["role"], message["content"]) for message in raw["context"]]
    return [_pair(context, raw[chosen], raw[rejected], domain=raw.get("domain") or "")]
