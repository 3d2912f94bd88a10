"""A chat in the terminal: answers stream, thinking is folded and counted against its budget.

``/think`` and ``/no_think`` switch the mode, ``/budget N`` (or ``none``) the budget, ``/show`` shows what was thought
last, ``/new`` begins anew, ``/quit`` ends.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TextIO

from data_recipes.chat import chat_format
from data_recipes.conversation import Message

if TYPE_CHECKING:
    from budget_control.vocabulary import ThinkingTokens
    from data_recipes.chat.base import ChatFormat

HELP = "/think  /no_think  /budget N|none  /show  /new  /quit"


@dataclass(frozen=True)
class Settings:
    """How answers are drawn."""

    budget: int | None
    grace: int
    max_tokens: int
    temperature: float
    thinking: bool = True


def command(text: str, settings: Settings) -> tuple[Settings, str]:
    """The settings after a line that begins with a slash, and what to say about it."""
    word, _, value = text.partition(" ")
    if word in ("/think", "/no_think"):
        return replace(settings, thinking=word == "/think"), f"thinking {'on' if word == '/think' else 'off'}"
    if word == "/budget" and value.strip() == "none":
        return replace(settings, budget=None), "no budget"
    if word == "/budget" and value.strip().isdigit():
        return replace(settings, budget=int(value)), f"budget {int(value)} tokens"
    return settings, HELP


class Folded:
    """Prints a completion token by token: one line that counts while it thinks, then the answer as it comes."""

    def __init__(
        self, tokens: "ThinkingTokens", tokenizer: Any, settings: Settings, stop: set[int], out: TextIO
    ) -> None:
        from budget_control.rule import BudgetRule

        self._rule = BudgetRule(tokens, settings.budget, settings.grace)
        self._tokenizer, self._budget, self._stop, self._out = tokenizer, settings.budget, stop, out
        self._ids: list[int] = []
        self._shown = 0
        self._started = False

    def put(self, ids: Any) -> None:
        """What transformers calls: first with the prompt [1, T], then with each token."""
        new = ids.flatten().tolist()
        if not self._started:
            self._started, self._state = True, self._rule.start(new)
            self._thought = self._rule.thinking(self._state)
            return
        for token in new:
            was_thinking = self._rule.thinking(self._state)
            self._state = self._rule.advance(self._state, token)
            if was_thinking:
                of = "" if self._budget is None else f" of {self._budget}"
                self._out.write(f"\r[thinking: {self._state.used}{of} tokens]")
                if not self._rule.thinking(self._state):
                    self._out.write("\n")
            elif token not in self._stop:
                self._ids.append(token)
                text = self._tokenizer.decode(self._ids)
                if not text.endswith("\ufffd"):  # a character whose bytes are not all there yet
                    self._out.write(text[self._shown :])
                    self._shown = len(text)
        self._out.flush()

    def end(self) -> None:
        """Ends the line."""
        self._out.write("\n")
        self._out.flush()


def talk(
    model: str,
    form: str,
    settings: Settings,
    device: str,
    read: Callable[[str], str] = input,
    out: TextIO = sys.stdout,
) -> None:
    """Loads a model and talks until ``read`` ends or ``/quit``."""
    from budget_control.vocabulary import ThinkingTokens
    from models.loading import load_model, load_tokenizer
    from models.training import resolve_device

    place, chat = resolve_device(device), chat_format(form)
    tokenizer = load_tokenizer(model)
    network: Any = load_model(model, "bfloat16" if place == "cuda" else "float32", place)
    tokens = ThinkingTokens.from_tokenizer(tokenizer, chat.think_open, chat.think_close, chat.stop)
    history: list[Message] = []
    print(HELP, file=out)
    while True:
        try:
            line = read("> ").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line == "/new":
            history = []
        elif line == "/show":
            print(history[-1].reasoning if history else "", file=out)
        elif line.startswith("/"):
            settings, said = command(line, settings)
            print(said, file=out)
        elif line:
            history.append(Message("user", line))
            history.append(answer(network, tokenizer, chat, tokens, history, settings, out))


def answer(
    network: Any,
    tokenizer: Any,
    chat: "ChatFormat",
    tokens: "ThinkingTokens",
    history: list[Message],
    settings: Settings,
    out: TextIO,
) -> Message:
    """The model's answer to a history, streamed to ``out``."""
    import torch
    from transformers import LogitsProcessorList

    from budget_control.hf import ThinkingBudgetProcessor

    prompt = chat.prompt(history, thinking=settings.thinking)
    ids_BT = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)], device=network.device)
    stop = sorted(tokens.stop_ids)
    shown = Folded(tokens, tokenizer, settings, set(stop), out)
    written_BT = network.generate(
        ids_BT,
        attention_mask=torch.ones_like(ids_BT),
        max_new_tokens=settings.max_tokens,
        eos_token_id=stop,
        pad_token_id=stop[0],
        logits_processor=LogitsProcessorList([ThinkingBudgetProcessor(tokens, settings.budget, settings.grace)]),
        streamer=shown,
        do_sample=settings.temperature > 0,
        **({"temperature": settings.temperature} if settings.temperature > 0 else {}),
    )
    new = [token for token in written_BT[0, ids_BT.shape[1] :].tolist() if token not in tokens.stop_ids]
    return chat.parse(tokenizer.decode(new), thinking=settings.thinking)
