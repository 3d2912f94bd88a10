"""A served model: questions in, replies out, each paid for once.

Replies are kept in a file that only grows, under a hash of the request: a killed run asks only what it has not been
answered yet. Spending is counted in the order of the questions, whether a reply came from the file or from the server,
so that what is asked does not depend on how often the work was interrupted or on which answer came first.
"""

import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanoalign.common.endpoint import chat_request
from nanoalign.common.errors import ConfigError, DataError, NanoalignError
from nanoalign.common.files import content_hash
from nanoalign.data_recipes.adapters.openai_form import openai_message
from nanoalign.data_recipes.chat import CHAT_FORMATS, chat_format
from nanoalign.data_recipes.chat.answers import NO_CHARACTER, SPECIAL_TOKEN, read_calls
from nanoalign.data_recipes.conversation import Message
from nanoalign.data_recipes.readers import RowError
from nanoalign.data_recipes.rows import split_thinking
from nanoalign.data_recipes.synthetic.config import Served

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
UNREAD = "a tool call that is not JSON"
NO_TEXT = "a message that is not text"
UNCLOSED = "thinking not closed once"
SPECIAL_TOKENS = frozenset(
    token for chat in map(chat_format, CHAT_FORMATS) for token in (*chat.special_tokens, *chat.stop)
)
"""Of every format: a row that contains one of them cannot be trained on in that format."""
REFUSALS = (400, 413, 422)
"""Statuses that are about one request (too long, say): kept as its answer. Any other 4xx ends the run."""


class EndpointError(NanoalignError, ConnectionError):
    """The endpoint cannot be reached, refuses everything, or keeps failing. Replies received so far are kept."""


@dataclass(frozen=True)
class Query:
    """A question: a conversation to answer. ``number`` distinguishes several samples of one answer (sent as the
    seed)."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    number: int = 0


@dataclass(frozen=True)
class Reply:
    """What came of a question: a message, or the reason why there is none that may be used."""

    message: Message | None
    fault: str = ""


CAPPED = Reply(None, "the spending cap was reached")


class ServedModel:
    """Asks an endpoint; see the module's text. Use as a context manager: it holds the file of replies alone."""

    def __init__(self, config: Served, replies: Path) -> None:
        """Raises ConfigError where another process writes to ``replies``, DataError where the file is damaged."""
        from filelock import FileLock, Timeout

        self.requests = 0
        """Replies used so far."""
        self.tokens = 0
        """Tokens of these, prompts included."""
        self.asked_now = 0
        """Replies that came from the endpoint, not from the file."""
        self._config = config
        replies.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{replies}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(f"{replies}: another process is writing there") from None
        self._places = _places(replies)
        self._counted: set[str] = set()
        self._file = replies.open("a+b")
        self._using_file = threading.Lock()
        self._stopping = threading.Event()

    def __enter__(self) -> "ServedModel":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._lock.release()

    def answer(self, asks: Sequence[Query]) -> list[Reply]:
        """A reply to each question, in order; CAPPED where the cap leaves no room. Raises EndpointError."""
        self._stopping.clear()
        bodies = [self._body(ask) for ask in asks]
        keys = [content_hash(body) for body in bodies]
        paid = {key: body for key, body in zip(keys, bodies) if key not in self._counted}
        requests, tokens = self.requests, self.tokens
        allowed: dict[str, int] = {}  # the most that each may cost
        for key, body in paid.items():
            room = _prompt_tokens(body) + self._config.max_tokens
            if requests + 1 <= self._config.most_requests and tokens + room <= self._config.most_tokens:
                requests, tokens = requests + 1, tokens + room
                allowed[key] = room
        missing = {key: body for key, body in paid.items() if key in allowed and key not in self._places}
        with ThreadPoolExecutor(self._config.parallel) as threads:
            asked = [threads.submit(self._learn, key, body) for key, body in missing.items()]
            try:
                for future in asked:
                    future.result()
            except BaseException:
                self._stopping.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        self._counted |= allowed.keys()
        rows = {key: self._kept(key) for key in dict.fromkeys(keys) if key in self._counted}
        for key, room in allowed.items():
            self.requests += 1
            self.tokens += _tokens_of(rows[key].get("usage")) or room
        return [_reply(rows[key]) if key in rows else CAPPED for key in keys]

    def _body(self, ask: Query) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._config.model,
            "messages": _openai(ask.messages),
            "temperature": self._config.temperature,
            "top_p": self._config.top_p,
            "max_tokens": self._config.max_tokens,
            "seed": ask.number,
            **self._config.extra,
        }
        if ask.tools:
            body["tools"] = [{"type": "function", "function": dict(tool)} for tool in ask.tools]
        return body

    def _learn(self, key: str, body: Mapping[str, Any]) -> None:
        """Asks until there is an answer, and keeps it. Raises EndpointError when the attempts are used up."""
        problem = ""
        for attempt in range(self._config.retries + 1):
            wait = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
            try:
                self._keep({"key": key, **self._send(body)})
                return
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}: {error.read(300).decode(errors='replace')}"
                if error.code in REFUSALS:
                    self._keep({"key": key, "refused": problem})
                    return
                if error.code != 429 and error.code < 500:
                    break
                wait = min(LONGEST_PAUSE_S, _seconds(error.headers.get("Retry-After")) or wait)
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, RecursionError) as error:
                problem = f"{type(error).__name__}: {error}"
            if attempt == self._config.retries or self._stopping.wait(wait):
                break
        raise EndpointError(
            f"{self._config.url} ({self._config.model}): no reply after {attempt + 1} attempts; last: {problem}"
        )

    def _send(self, body: Mapping[str, Any]) -> dict[str, Any]:
        request = chat_request(self._config.url, self._config.key_variable, body)
        with urllib.request.urlopen(request, timeout=self._config.timeout_s) as response:
            reply = json.load(response)
        choice = reply["choices"][0]
        if not isinstance(choice["message"], dict):
            raise ValueError(f"the reply's message is {str(choice['message'])[:200]}")
        return {"message": choice["message"], "finish": choice.get("finish_reason"), "usage": reply.get("usage")}

    def _keep(self, row: dict[str, Any]) -> None:
        with self._using_file:
            self._places[row["key"]] = self._file.seek(0, os.SEEK_END)
            # Half of a surrogate pair has no bytes; as a backslash escape it stays what it was in JSON.
            self._file.write(json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
            self._file.flush()
            self.asked_now += 1

    def _kept(self, key: str) -> dict[str, Any]:
        with self._using_file:
            self._file.seek(self._places[key])
            row: dict[str, Any] = json.loads(self._file.readline())
        return row


def _places(path: Path) -> dict[str, int]:
    """Where each reply begins in a file, whose last line a kill may have cut: that one is removed."""
    places: dict[str, int] = {}
    if not path.exists():
        return places
    position = 0
    with path.open("r+b") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                file.truncate(position)
                break
            try:
                places[json.loads(line)["key"]] = position
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}:{number}: not a reply ({error}); mend or remove the line") from None
            position += len(line)
    return places


def _reply(row: Mapping[str, Any]) -> Reply:
    """The reply in a kept row: a message, or why it may not be used. A model's words are never an error."""
    if "refused" in row:
        return Reply(None, f"refused with {row['refused'][:8]}")
    if row["finish"] == "length":
        return Reply(None, "cut at max_tokens")
    raw = {key: row["message"].get(key) for key in ("content", "tool_calls")}
    reasoning = row["message"].get("reasoning_content") or row["message"].get("reasoning") or None
    if not isinstance(raw["content"] or "", str | list) or not isinstance(reasoning or "", str):
        return Reply(None, NO_TEXT)
    try:
        said = openai_message({**raw, "role": "assistant", "reasoning_content": reasoning})
        written = json.dumps(said.get("tool_calls") or [], ensure_ascii=False)
        calls = read_calls(written) if said.get("tool_calls") else ()
        content, reasoning = split_thinking(said["content"].strip(), said.get("reasoning_content"), "the reply")
    except RowError as error:
        if error.kind == "thinking tags":
            return Reply(None, UNCLOSED)
        return Reply(None, UNREAD if row["message"].get("tool_calls") else NO_TEXT)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Reply(None, UNREAD)
    if calls is None:
        return Reply(None, UNREAD)
    message = Message("assistant", content, (reasoning or "").strip(), calls)
    if fault := _fault("\n".join((content, message.reasoning or "", written))):
        return Reply(None, fault)
    return Reply(message) if content or calls else Reply(None, "an empty answer")


def _fault(text: str) -> str:
    """Why a text could not be a row that is trained on, or ""."""
    if any(token in text for token in SPECIAL_TOKENS):
        return SPECIAL_TOKEN
    try:
        text.encode()
    except UnicodeEncodeError:
        return NO_CHARACTER
    return ""


def _openai(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as OpenAI's API takes them: calls with ids of their own, results that name them, no reasoning."""
    rows: list[dict[str, Any]] = []
    open_calls: list[str] = []
    for place, message in enumerate(messages):
        row: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            open_calls = [f"call_{place}_{number}" for number in range(len(message.tool_calls))]
            row["tool_calls"] = [
                {
                    "id": id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)},
                }
                for id, call in zip(open_calls, message.tool_calls)
            ]
        if message.role == "tool" and open_calls:
            row["tool_call_id"] = open_calls.pop(0)
        rows.append(row)
    return rows


def _tokens_of(usage: Any) -> int:
    """The tokens that an endpoint reports, 0 where it reports none."""
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if type(total) is int and total > 0 else 0


def _prompt_tokens(body: Mapping[str, Any]) -> int:
    """A cautious guess of a request's tokens: one for every three bytes."""
    return len(json.dumps([body["messages"], body.get("tools")], ensure_ascii=False).encode()) // 3


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:  # a date: the usual pause will do
        return None
