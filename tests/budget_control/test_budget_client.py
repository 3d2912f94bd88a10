"""The client over HTTP, against small local servers that behave, and that do not."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from test_budget_rule import PIECES, TABLES

from nanoalign.budget_control.client import Server, ServerError, Token
from nanoalign.budget_control.rule import BudgetRule
from nanoalign.common.errors import ConfigError

TOKENS = TABLES[1]
Behaviour = Callable[[dict[str, Any], "Handler"], None]


class Handler(BaseHTTPRequestHandler):
    behave: Behaviour
    requests: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
        with suppress(BrokenPipeError, ConnectionResetError):
            type(self).behave(body, self)

    def events(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

    def event(self, choice: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
        self.wfile.flush()

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def server(behave: Behaviour, **settings: Any) -> Iterator[tuple[Server, list[dict[str, Any]]]]:
    requests: list[dict[str, Any]] = []
    handler = type("Bound", (Handler,), {"behave": staticmethod(behave), "requests": requests})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{http.server_port}/v1", "tiny", **settings), requests
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def writes(script: list[int], *, ids: bool = True, per_event: int = 1, show_stop: bool = True) -> Behaviour:
    """A server whose model writes ``script`` after the one token of prompt, whatever was put in between."""

    def behave(body: dict[str, Any], handler: Handler) -> None:
        prompt = body["prompt"]
        written = len(prompt) - 1 if ids else script_position(prompt)
        todo = script[written : written + body["max_tokens"]]
        todo = todo[: todo.index(0) + 1] if 0 in todo else todo
        handler.events()
        for start in range(0, len(todo), per_event):
            group = todo[start : start + per_event]
            last = start + per_event >= len(todo)
            finish = ("stop" if todo[-1] == 0 else "length") if last else None
            if finish == "stop" and not show_stop:
                group = group[:-1]
            texts = [PIECES[token] for token in group]
            choice: dict[str, Any] = {"text": "".join(texts), "finish_reason": finish}
            handler.event(choice | ({"token_ids": group} if ids else {"logprobs": {"tokens": texts}}))
        handler.wfile.write(b"data: [DONE]\n\n")

    def script_position(prompt: str) -> int:
        """In the text protocol the scripts below write one-character tokens only, and the close has three tokens."""
        return len(prompt.removeprefix("<think>").replace("</think>", "..."))

    return behave


def complete(
    server: Server, budget: int | None, prompt: Any = (1,), max_tokens: int = 30, grace: int = 2
) -> list[Token]:
    return list(server.complete(prompt, BudgetRule(TOKENS, budget, grace), max_tokens, temperature=0.5))


A, LINE, STOP = PIECES.index("a"), PIECES.index("\n"), 0


@pytest.mark.parametrize("per_event", [1, 4])
def test_closes_at_the_line_end_and_goes_on_from_there(per_event: int) -> None:
    script = [A, A, A, LINE, A, A, A, A, A, STOP]
    with server(writes(script, per_event=per_event), api_key="key") as (there, requests):
        tokens = complete(there, 3)
    assert [token.id for token in tokens] == [A, A, A, LINE, *TOKENS.close_ids, A, A, STOP]
    assert [token.forced for token in tokens] == [False] * 4 + [True] * 3 + [False] * 3
    assert [token.thinking for token in tokens] == [True] * 7 + [False] * 3
    assert tokens[-1].finish == "stop"
    first, second = requests
    assert first["prompt"] == [1] and first["max_tokens"] == 30 and first["path"] == "/v1/completions"
    assert second["prompt"] == [1, A, A, A, LINE, *TOKENS.close_ids] and second["max_tokens"] == 23
    assert {first["key"], second["key"]} == {"Bearer key"} and first["temperature"] == 0.5


def test_one_request_where_nothing_is_forced_and_where_all_is_known_before() -> None:
    with server(writes([A, A, 2, A, STOP])) as (there, requests):
        assert [token.id for token in complete(there, 9)] == [A, A, 2, A, STOP]
        assert len(requests) == 1
    with server(writes([A, A, A, A, A, STOP])) as (there, requests):
        assert [token.id for token in complete(there, 0)] == [*TOKENS.close_ids, A, A, STOP]
        assert len(requests) == 1 and requests[0]["prompt"] == [1, *TOKENS.close_ids]


@pytest.mark.parametrize("show_stop", [True, False])
def test_a_stop_inside_thinking_is_answered_with_the_close(show_stop: bool) -> None:
    with server(writes([A, STOP, STOP, STOP, A, STOP], show_stop=show_stop)) as (there, _):
        tokens = complete(there, 9)
    ids = [token.id for token in tokens]
    assert ids == [A, *TOKENS.close_ids, A, *([STOP] if show_stop else [None])] and tokens[-1].finish == "stop"


def test_texts_where_the_server_gives_no_ids() -> None:
    with server(writes([A, A, A, LINE, A, A, A, A, STOP], ids=False)) as (there, requests):
        tokens = complete(there, 3, prompt="<think>")
    assert "".join(token.text for token in tokens) == "aaa\n</think>a<eos>"
    assert [request["prompt"] for request in requests] == ["<think>", "<think>aaa\n</think>"]
    assert requests[0]["logprobs"] == 1


def test_a_model_that_loops_ends_at_max_tokens() -> None:
    with server(writes([A] * 100)) as (there, _):
        tokens = complete(there, 5, max_tokens=20)
    assert [token.id for token in tokens[:-1]] == [A] * 7 + [*TOKENS.close_ids] + [A] * 10
    assert tokens[-1] == Token("", None, finish="length")


def test_a_full_context_is_the_end_and_no_endless_loop() -> None:
    def full(body: dict[str, Any], handler: Handler) -> None:
        handler.events()
        handler.event({"text": "a", "token_ids": [A], "finish_reason": "length"})

    with server(full) as (there, requests):
        assert [token.finish for token in complete(there, 50)] == [None, "length"]
    assert len(requests) == 1


def breaks_off(body: dict[str, Any], handler: Handler) -> None:
    handler.events()
    handler.event({"text": "a", "token_ids": [A], "finish_reason": None})


def breaks_off_inside_an_event(body: dict[str, Any], handler: Handler) -> None:
    breaks_off(body, handler)
    handler.wfile.write(b'data: {"choices": [{"te')


def hangs(body: dict[str, Any], handler: Handler) -> None:
    breaks_off(body, handler)
    time.sleep(0.6)


def drips(body: dict[str, Any], handler: Handler) -> None:
    handler.events()
    for _ in range(30):
        handler.event({"text": "a", "token_ids": [A], "finish_reason": None})
        time.sleep(0.02)


def refuses(body: dict[str, Any], handler: Handler) -> None:
    handler.send_error(400, "max_tokens is too large")


def fails_midway(body: dict[str, Any], handler: Handler) -> None:
    handler.events()
    handler.wfile.write(b'data: {"error": {"message": "out of memory"}}\n\n')


def aborts(body: dict[str, Any], handler: Handler) -> None:
    handler.events()
    handler.event({"text": "", "token_ids": [], "finish_reason": "abort"})


def without_ids(body: dict[str, Any], handler: Handler) -> None:
    handler.events()
    handler.event({"text": "a", "finish_reason": None})


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (breaks_off, "dropped the connection before"),
        (breaks_off_inside_an_event, "the stream was cut"),
        (hangs, "nothing came for 0.2 s"),
        (drips, "no end within 0.3 s"),
        (refuses, "HTTP 400 max_tokens is too large"),
        (fails_midway, "out of memory"),
        (aborts, "ended the completion: abort"),
        (without_ids, "returns no token ids"),
    ],
)
def test_what_goes_wrong_on_a_server_is_one_clear_error(behaviour: Behaviour, message: str) -> None:
    with server(behaviour, timeout_s=0.2, deadline_s=0.3) as (there, _), pytest.raises(ServerError, match=message):
        complete(there, 50)


@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize(
    "sent",
    [
        b"data: \xff\xfe", b"data: [1]", b"data: null", b"data: " + b"[" * 100_000, b'data: {"choices": 3}',
        b'data: {"choices": [null]}', b'data: {"choices": [{"finish_reason": ["stop"]}]}',
        b'data: {"choices": [{"finish_reason": 7}]}', b'data: {"choices": [{"text": "a", "token_ids": "a"}]}',
        b'data: {"choices": [{"text": "a", "token_ids": [-1], "logprobs": {"tokens": [1]}}]}',
        b'data: {"choices": [{"text": "a", "token_ids": [null], "logprobs": [2]}]}',
        b'data: {"choices": [{"text": "a", "token_ids": [true], "logprobs": {"tokens": "a"}}]}',
        b'data: {"choices": [{"text": "a", "logprobs": null}]}', b'data: {"choices": [{"text": "a", "logprobs": {}}]}',
        b'data: {"choices": [{"text": null, "logprobs": null}]}', b'data: {"choices": [{}]}', b'data: {"choices": []}',
        b'data: {"choices": null}', b"data: {}", b"data: [DONE]", b"data:", b": ping", b"", b"event: x", b"\xff",
        b'data: {"error": {"message": "out of memory"}}', b'data: {"a": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_nonsense_from_a_server_is_one_clear_error(sent: bytes, with_ids: bool) -> None:
    def behave(body: dict[str, Any], handler: Handler) -> None:
        handler.events()
        handler.wfile.write(sent + b"\n\n")

    with server(behave) as (there, _), pytest.raises(ServerError):
        complete(there, 50, prompt=(1,) if with_ids else "<think>")


@pytest.mark.parametrize("budget", [None, 0, 5])
def test_an_empty_completion_and_nulls_beside_it(budget: int | None) -> None:
    def behave(body: dict[str, Any], handler: Handler) -> None:
        handler.events()
        handler.wfile.write(b'data: {"error": null, "choices": null}\n\ndata:\n\n: ping\n\n')
        handler.event({"text": None, "token_ids": None, "logprobs": None, "finish_reason": None})
        handler.event({"text": "", "token_ids": [], "logprobs": {"tokens": []}, "finish_reason": "stop"})

    for prompt in ((1,), "<think>"):
        with server(behave) as (there, _):
            tokens = complete(there, budget, prompt=prompt)
        assert [token.id for token in tokens] == [*(TOKENS.close_ids if budget is not None else ()), None]
        assert tokens[-1].finish == "stop"


def test_a_token_beyond_the_vocabulary_writes_nothing() -> None:
    def behave(body: dict[str, Any], handler: Handler) -> None:
        handler.events()
        handler.event({"text": "?", "token_ids": [A, 10**30], "finish_reason": "stop"})

    with server(behave) as (there, _):
        tokens = complete(there, None)
    assert [(token.id, token.text) for token in tokens] == [(A, "a"), (10**30, ""), (None, "")]


def test_no_server_and_no_url() -> None:
    with server(breaks_off) as (there, _):
        pass
    with pytest.raises(ServerError, match="the connection failed"):
        complete(there, 5)
    with pytest.raises(ConfigError, match="expected http"):
        complete(Server("localhost:8000", "tiny"), 5)
    with server(without_ids) as (there, _), pytest.raises(ServerError, match="returns no logprobs"):
        complete(there, 5, prompt="<think>")
