"""The budget rule from outside: over any OpenAI-compatible completions server, without a plugin.

The client streams, watches every token, breaks off when the close is due, and continues from the prompt, what was
written and the close. Each forced close costs one further request, which prefix caching makes cheap.

With a prompt of token ids the server must return ids (vLLM: ``return_token_ids``): nothing is tokenized twice. With a
prompt of text it must return the tokens' texts (``logprobs``, as llama.cpp, SGLang and most others do).
"""

import http.client
import json
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from nanoalign.budget_control.rule import BudgetRule, State
from nanoalign.common.errors import ConfigError, NanoalignError

LONGEST_EVENT = 2**24
"""Bytes of one event of a stream."""


class ServerError(NanoalignError, ConnectionError):
    """The completions server cannot be reached, refuses, breaks off, or does not answer in time."""


@dataclass(frozen=True)
class Token:
    """One token of a completion. The last of a stream may be empty; it carries ``finish``."""

    text: str
    id: int | None
    forced: bool = False
    """Written by the rule, not by the model."""
    thinking: bool = False
    """Written while thinking, the closing tag included."""
    finish: Literal["stop", "length"] | None = None


Source = Callable[[Sequence[Token], int], Generator[Token, None, None]]
"""What a server does: given what has been written and how many tokens more it may write, streams them. The last one
carries ``finish``. Closing the iterator ends the request."""


def enforce(source: Source, rule: BudgetRule, state: State, max_tokens: int) -> Iterator[Token]:
    """Streams a completion of at most ``max_tokens`` tokens from ``source`` under ``rule``, from ``state`` on."""
    written: list[Token] = []
    nothing = len(rule.tokens.texts)
    stop_texts = {rule.tokens.texts[token] for token in rule.tokens.stop_ids}

    def write(token: Token, id: int) -> Token:
        nonlocal state
        written.append(replace(token, thinking=rule.thinking(state), finish=None))
        state = rule.advance(state, id)
        return written[-1]

    def write_close(id: int) -> Token:
        return write(Token(rule.tokens.texts[id], id, forced=True), id)

    while len(written) < max_tokens:
        if (due := rule.forced(state)) is not None:
            yield write_close(due)
            continue
        with closing(source(written, max_tokens - len(written))) as stream:
            for token in stream:
                id = rule.tokens.id_of_text.get(token.text, nothing) if token.id is None else token.id
                # A server may show the token that it stopped at, or keep it to itself.
                shows_stop = token.finish == "stop" and (id in rule.tokens.stop_ids or token.text in stop_texts)
                if (token.text or token.id is not None) and not shows_stop:
                    yield write(token, id)
                if token.finish == "stop":
                    stop = id if shows_stop else next(iter(rule.tokens.stop_ids), nothing)
                    if (due := rule.written(state, stop)) == stop:
                        thinking = rule.thinking(state)
                        yield replace(token, thinking=thinking) if shows_stop else Token("", None, finish="stop")
                        return
                    if len(written) < max_tokens:
                        yield write_close(due)
                    break
                if token.finish == "length":
                    yield Token("", None, finish="length")
                    return
                if rule.forced(state) is not None or len(written) == max_tokens:
                    break
            else:
                raise ServerError("the completions server ended its stream without a finish_reason")
    yield Token("", None, finish="length")


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible server. ``url`` ends before ``/completions``, usually in ``/v1``."""

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0
    """Longest wait for a connection, the first token or the next one."""
    deadline_s: float = 3600.0
    """Longest time for one completion, all its requests together."""

    def complete(
        self,
        prompt: str | Sequence[int],
        rule: BudgetRule,
        max_tokens: int,
        *,
        temperature: float = 1.0,
        options: Mapping[str, Any] | None = None,
    ) -> Iterator[Token]:
        """Streams the completion of ``prompt`` under ``rule``. ``options`` are further fields of the request
        (``top_p``, ``seed``, ``stop_token_ids`` ...).

        Raises ServerError where the server cannot be reached, answers with an error, breaks off or is too slow.
        """
        end = time.monotonic() + self.deadline_s
        with_ids = not isinstance(prompt, str)
        body: dict[str, Any] = {"model": self.model, "stream": True, "temperature": temperature, **(options or {})}
        body |= {"return_token_ids": True} if with_ids else {"logprobs": 1}

        def source(written: Sequence[Token], room: int) -> Generator[Token, None, None]:
            so_far = (
                [*prompt, *(token.id for token in written)]
                if with_ids
                else str(prompt) + "".join(token.text for token in written)
            )
            return self._stream({**body, "prompt": so_far, "max_tokens": room}, rule.tokens.texts, with_ids, end)

        state = State(rule.tokens.scan_text(prompt)) if isinstance(prompt, str) else rule.start(prompt)
        return enforce(source, rule, state, max_tokens)

    def _stream(
        self, body: dict[str, Any], texts: Sequence[str], with_ids: bool, end: float
    ) -> Generator[Token, None, None]:
        """The tokens of one request. Leaving the iterator closes the connection, which ends the generation."""
        for event in self._events(body, end):
            if event.get("error"):
                raise ServerError(f"{self.url}: {str(event['error'])[:2000]}")
            for choice in _objects(event.get("choices")):
                finish = choice.get("finish_reason")
                if finish not in (None, "stop", "length"):
                    raise ServerError(f"{self.url}: the server ended the completion: {str(finish)[:200]}")
                tokens = _choice_tokens(choice, texts, with_ids)
                if finish and not tokens:
                    tokens = [Token("", None)]
                for token in tokens[:-1]:
                    yield token
                for token in tokens[-1:]:
                    yield Token(token.text, token.id, finish=finish)

    def _events(self, body: dict[str, Any], end: float) -> Iterator[dict[str, Any]]:
        """The JSON events of one streamed request."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"server url: expected http(s)://host[:port]/path, got {self.url!r}")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname, parts.port, timeout=self.timeout_s)
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        with closing(connection):
            try:
                connection.request("POST", parts.path.rstrip("/") + "/completions", json.dumps(body), headers)
                response = connection.getresponse()
                if response.status != 200:
                    detail = response.read(2000).decode("utf-8", "replace").strip()
                    raise ServerError(f"{self.url}: HTTP {response.status} {response.reason}: {detail}")
                while line := response.readline(LONGEST_EVENT):
                    if time.monotonic() > end:
                        raise ServerError(f"{self.url}: no end within {self.deadline_s:g} s")
                    data = line.removeprefix(b"data:").strip()
                    if data == b"[DONE]":
                        return
                    if line.startswith(b"data:") and data:
                        yield _event(data)
            except TimeoutError as error:
                raise ServerError(f"{self.url}: nothing came for {self.timeout_s:g} s") from error
            except (http.client.HTTPException, socket.gaierror, OSError) as error:
                if isinstance(error, ServerError):
                    raise
                raise ServerError(f"{self.url}: the connection failed: {error!r}") from error
            except (ValueError, RecursionError) as error:
                raise ServerError(
                    f"{self.url}: an event is not a JSON object, the stream was cut: {data[:200]!r}"
                ) from error
        raise ServerError(f"{self.url}: the server dropped the connection before the completion ended")


def _event(data: bytes) -> dict[str, Any]:
    """The JSON object in an event. Raises ValueError or RecursionError where there is none."""
    event = json.loads(data)
    if not isinstance(event, dict):
        raise ValueError("not an object")
    return event


def _objects(value: Any) -> list[dict[str, Any]]:
    """A list of objects; null is an empty one."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ServerError(f"the server's choices are not a list of objects: {str(value)[:200]}")
    return value


def _choice_tokens(choice: Mapping[str, Any], texts: Sequence[str], with_ids: bool) -> list[Token]:
    if with_ids:
        ids = choice.get("token_ids")
        if ids is None and choice.get("text"):
            raise ServerError("the server returns no token ids: give the prompt as text instead")
        if not _is_list_of(int, ids) or any(id < 0 for id in ids or ()):
            raise ServerError(f"the server's token ids are not a list of ids: {str(ids)[:200]}")
        return [Token(texts[i] if i < len(texts) else "", i) for i in ids or ()]
    logprobs = choice.get("logprobs") or {}
    tokens = logprobs.get("tokens") if isinstance(logprobs, dict) else logprobs
    if not _is_list_of(str, tokens):
        raise ServerError(f"the server's logprobs hold no token list: {str(logprobs)[:200]}")
    if not tokens and choice.get("text"):
        raise ServerError("the server returns no logprobs: without them its tokens cannot be counted")
    return [Token(text, None) for text in tokens or ()]


def _is_list_of(kind: type, value: Any) -> bool:
    """Whether it is a list of ``kind``, or null."""
    return value is None or (isinstance(value, list) and all(type(item) is kind for item in value))
