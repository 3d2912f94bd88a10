"""``nanoalign chat MODEL --budget N``: talk to a model, see what it thinks and what its budget does.

The thinking is folded into one line that shows the tokens thought against the budget. Commands, each on a line of its
own: ``/think`` and ``/no_think`` switch the mode, ``/budget 64`` and ``/budget off`` the budget, ``/show`` unfolds the
thinking, ``/new`` starts over, ``/quit`` ends. Ctrl-C stops an answer.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from nanoalign.budget_control.client import Server, Token
from nanoalign.budget_control.rule import BudgetRule, check_budget
from nanoalign.budget_control.vocabulary import ThinkingTokens
from nanoalign.common.errors import ConfigError, DataError, NanoalignError
from nanoalign.common.printable import printable
from nanoalign.data_recipes.chat.answers import as_message
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.chat.render import special_token_in
from nanoalign.data_recipes.conversation import Conversation, Message

Writer = Callable[[Sequence[int], BudgetRule, int, Callable[[Token], None]], None]
"""Writes a completion to a prompt's ids under a rule, up to a number of tokens, passing on every token as it comes."""

_BEGUN = re.compile(
    r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x00-\x08\x0a-\x1f\x7f-\x9f]*\x1b?\Z"  # titles, links, clipboard
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*\Z"  # colours, cursor, screen
    r"|\x1b[ -/]*\Z"
)
"""The beginning of a terminal's control sequence at the end of a text (common/printable.py removes complete ones)."""
HELP = "/think  /no_think  /budget N|off  /show  /new  /quit"


@dataclass
class Session:
    """A conversation and its settings."""

    budget: int | None = None
    grace: int = 500
    thinking: bool | None = None
    """None obeys the signals in the messages."""
    show_thinking: bool = False
    messages: list[Message] = field(default_factory=list)

    def command(self, line: str) -> str | None:
        """Carries out a command; returns its reply, or None where ``line`` is a message.

        Raises ConfigError for a command that does not exist or a budget that is none.
        """
        match line.split():
            case ["/think"] | ["/no_think"]:
                self.thinking = line.strip() == "/think"
                return "thinking is on" if self.thinking else "thinking is off"
            case ["/budget", "off" | "null" | "none"]:
                self.budget = None
                return "thinking is unlimited"
            case ["/budget", number] if number.isdecimal():
                self.budget = int(number)
                return f"at most {number} tokens of thinking"
            case ["/show"]:
                self.show_thinking = not self.show_thinking
                return "thinking is shown" if self.show_thinking else "thinking is folded"
            case ["/new"]:
                self.messages.clear()
                return "a new conversation"
            case [word, *_] if word.startswith("/") and word not in ("/think", "/no_think"):
                raise ConfigError(f"{line.strip()!r} is not a command; {HELP}")
        return None


def settled(text: str) -> int:
    """How much of an unfinished text can be shown: all but a control sequence that may only have begun. What is safe to
    show of it stays so whatever follows."""
    begun = _BEGUN.search(text)
    return begun.start() if begun else len(text)


class Screen:
    """Shows tokens as they come: the thinking folded, the answer as text."""

    def __init__(self, console: Console, tokenizer: Any, session: Session) -> None:
        self.console, self.tokenizer, self.session = console, tokenizer, session
        self.ids: list[int] = []
        """Everything written, the stop token left out."""
        self.thought = 0
        """Tokens of thinking so far."""
        self._cut = self._thinking = False
        self._part = 0
        """Where in ``ids`` the part begins that is being shown, thinking or answer."""
        self._raw = self._shown = ""
        """What has come of it, if it is shown as text, and what of that has been printed."""
        self._folded: Live | None = None

    def __call__(self, token: Token) -> None:
        if token.id is None or token.finish == "stop":
            return
        if token.thinking != self._thinking:
            self._end_part()
            self._thinking = token.thinking
        self.ids.append(token.id)
        self.thought += token.thinking
        self._cut |= token.thinking and token.forced
        if token.thinking and not self.session.show_thinking:
            self._show_folded()
        else:
            self._print()

    def close(self) -> None:
        """Ends the display."""
        self._end_part()
        self.console.print()

    def _end_part(self) -> None:
        if self._folded is not None:
            self._folded.stop()
            self._folded = None
        self._print_up_to(len(self._raw))
        if self._thinking:
            closed = ", closed by the budget" if self._cut else ""
            unfolded = "\n" if self._shown else ""
            self.console.print(f"{unfolded}[thought {self._count()} tokens{closed}]", style="dim", markup=False)
        self._part, self._raw, self._shown = len(self.ids), "", ""

    def _show_folded(self) -> None:
        if self._folded is None:
            self._folded = Live(console=self.console, transient=True, auto_refresh=False)
            self._folded.start()
        last_line = printable(self._text()).rstrip().rpartition("\n")[2]
        line = Text(f"thinking {self._count()}  {last_line}", style="dim", no_wrap=True, overflow="ellipsis")
        self._folded.update(line, refresh=True)

    def _print(self) -> None:
        self._raw = self._text().lstrip()
        # A character of several tokens is whole only with its last one.
        if not self._raw.endswith("\ufffd"):
            self._print_up_to(settled(self._raw))

    def _print_up_to(self, end: int) -> None:
        text = printable(self._raw[:end])
        new, self._shown = text[len(self._shown) :], text
        style = "dim" if self._thinking else ""
        self.console.print(new, end="", style=style, markup=False, highlight=False, soft_wrap=True)

    def _text(self) -> str:
        return str(self.tokenizer.decode(self.ids[self._part :], skip_special_tokens=False))

    def _count(self) -> str:
        return str(self.thought) if self.session.budget is None else f"{self.thought}/{self.session.budget}"


def converse(
    session: Session,
    write: Writer,
    chat: ChatFormat,
    tokens: ThinkingTokens,
    tokenizer: Any,
    max_tokens: int,
    console: Console,
    read_line: Callable[[], str],
) -> None:
    """Reads lines and answers them until ``/quit`` or the end of the input."""
    while True:
        try:
            line = read_line()
        except (EOFError, KeyboardInterrupt):
            return
        if line.strip() == "/quit":
            return
        try:
            told = session.command(line)
            if told is not None or not line.strip():
                console.print(told or HELP, style="italic", markup=False, highlight=False)
                continue
            answer(session, line, write, chat, tokens, tokenizer, max_tokens, console)
        except NanoalignError as error:
            console.print(f"error: {printable(str(error))}", style="red", markup=False, highlight=False)


def answer(
    session: Session,
    line: str,
    write: Writer,
    chat: ChatFormat,
    tokens: ThinkingTokens,
    tokenizer: Any,
    max_tokens: int,
    console: Console,
) -> None:
    """Answers one message and adds both to the conversation; after an error neither is added. Raises DataError
    for a message that holds a special token."""
    messages = [*session.messages, Message("user", line)]
    if fault := special_token_in(Conversation(tuple(messages)), chat):
        raise DataError(fault)
    prompt = tokenizer.encode(chat.prompt(messages, thinking=session.thinking), add_special_tokens=False)
    rule = BudgetRule(tokens, session.budget, session.grace)
    screen = Screen(console, tokenizer, session)
    try:
        write(prompt, rule, max_tokens, screen)
    except KeyboardInterrupt:
        console.print(" [stopped]", style="dim", markup=False, end="")
    finally:
        screen.close()
    text = tokenizer.decode(screen.ids, skip_special_tokens=False)
    said = chat.parse(text, thinking=rule.thinking(rule.start(prompt)))
    session.messages = [*messages, as_message(said, chat)]


def local_writer(model: Any, tokens: ThinkingTokens, temperature: float) -> Writer:
    """Writes with a transformers model of this process."""
    import torch
    from transformers import LogitsProcessorList

    from nanoalign.budget_control.hf import ThinkingBudgetProcessor

    def write(prompt: Sequence[int], rule: BudgetRule, max_tokens: int, emit: Callable[[Token], None]) -> None:
        ids = torch.tensor([list(prompt)], device=model.device)
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        stop_ids = sorted(tokens.stop_ids)
        processors = LogitsProcessorList([ThinkingBudgetProcessor(tokens, rule.budget, rule.grace)])
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, eos_token_id=stop_ids,
            pad_token_id=stop_ids[0], streamer=_Streamer(rule, prompt, emit), logits_processor=processors, **sampling,
        )  # fmt: skip

    return write


def server_writer(server: Server, temperature: float) -> Writer:
    """Writes through an OpenAI-compatible server; it needs no plugin."""

    def write(prompt: Sequence[int], rule: BudgetRule, max_tokens: int, emit: Callable[[Token], None]) -> None:
        options = {"stop_token_ids": sorted(rule.tokens.stop_ids), "skip_special_tokens": False}
        for token in server.complete(prompt, rule, max_tokens, temperature=temperature, options=options):
            emit(token)

    return write


class _Streamer:
    """What ``generate`` calls with the prompt and then with every token."""

    def __init__(self, rule: BudgetRule, prompt: Sequence[int], emit: Callable[[Token], None]) -> None:
        self.rule, self.state, self.emit = rule, rule.start(prompt), emit
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for id in value.flatten().tolist():
            rule, state = self.rule, self.state
            stopped = "stop" if id in rule.tokens.stop_ids else None
            self.state = rule.advance(state, id)
            forced = rule.forced(state) is not None
            self.emit(Token(rule.tokens.texts[id], id, forced, rule.thinking(state), stopped))  # type: ignore[arg-type]

    def end(self) -> None: ...


def run_chat(
    model: str,
    chat: str,
    *,
    budget: int | None = None,
    grace: int = 500,
    max_tokens: int = 4096,
    temperature: float = 0.6,
    tokenizer: str | None = None,
    served_name: str | None = None,
    api_key: str | None = None,
    device: str = "auto",
) -> None:
    """The command. ``model`` is a model spec, loaded here, or the URL of a server (``http://127.0.0.1:8000/v1``), which
    needs ``tokenizer``, a model spec too, and ``served_name``.

    Raises:
        ConfigError: a budget that is none, or a server without a tokenizer.
    """
    check_budget(budget, grace)
    remote = model.startswith(("http://", "https://"))
    if remote and (tokenizer is None or served_name is None):
        raise ConfigError(f"{model} is a server: name its model and give that model's tokenizer")

    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.models.loading import load_model, load_tokenizer
    from nanoalign.models.training import resolve_device

    format_ = chat_format(chat)
    words = load_tokenizer(tokenizer or model)
    tokens = ThinkingTokens.from_tokenizer(words, format_.think_open, format_.think_close, format_.stop)
    if remote:
        write = server_writer(Server(model, str(served_name), api_key), temperature)
    else:
        on = resolve_device(device)
        write = local_writer(load_model(model, "bfloat16" if on == "cuda" else "float32", on), tokens, temperature)
    console = Console()
    console.print(HELP, style="italic", markup=False, highlight=False)
    converse(
        Session(budget, grace), write, format_, tokens, words, max_tokens, console, lambda: console.input("[bold]> [/]")
    )
