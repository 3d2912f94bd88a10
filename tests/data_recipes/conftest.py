"""Tokenizers and a served model for the tests of this room."""

import inspect
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from nanoalign.data_recipes.chat import CHAT_FORMATS, chat_format
from nanoalign.data_recipes.synthetic import served

SPECIAL = sorted({token for chat in map(chat_format, CHAT_FORMATS) for token in (*chat.special_tokens, *chat.stop)})


def _train(pre_tokenizer: Any, extra: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    texts = [
        inspect.getsource(inspect)[:30_000],
        "<think></think>(a)  [b] yes.\n\n</think>\n\n" * 60,
        '")</tool_call> <x>(y)\n' * 60,
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, special_tokens=[*SPECIAL, *extra])
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def gpt2_like() -> Any:
    """GPT-2's splitting, thinking tags of several tokens (as SmolLM2's and Nano v2's tokenizers)."""
    from tokenizers import pre_tokenizers

    return _train(pre_tokenizers.ByteLevel(add_prefix_space=False), [])


@pytest.fixture(scope="session")
def superword() -> Any:
    """No splitting at all: tokens merge across words and line feeds, the hardest case for boundaries."""
    from tokenizers import pre_tokenizers

    return _train(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), ["<think>", "</think>"])


Failure = int | str
"""A status, or "drop" (nothing is answered), "cut" (half a reply) or "garbage" (no JSON)."""


class Endpoint:
    """An OpenAI-compatible server on this machine: what it says and how it fails is a function of the request."""

    def __init__(self) -> None:
        self.say: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: {"content": f"{body['seed']}"}
        self.failures: list[Failure] = []
        """What happens to the next requests, before they succeed."""
        self.bodies: list[dict[str, Any]] = []
        """All that were answered."""
        self.tokens: int | None = 10
        self.finish = "stop"
        self.delay_s = 0.0
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint._answer(self, body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self._lock:
            failure = self.failures.pop(0) if self.failures else None
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        time.sleep(self.delay_s)
        reply: dict[str, Any] = {"choices": [{"message": self.say(body), "finish_reason": self.finish}]}
        if self.tokens is not None:
            reply["usage"] = {"total_tokens": self.tokens}
        text = json.dumps(reply).encode()
        with self._lock:
            self._at_once -= 1
            if failure is None:
                self.bodies.append(body)
        if failure == "drop":
            handler.connection.close()
            return
        status = failure if isinstance(failure, int) else 200
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(text)))
        if status == 429:
            handler.send_header("Retry-After", "0.01")
        handler.end_headers()
        handler.wfile.write({"cut": text[: len(text) // 2], "garbage": b"x" * len(text)}.get(str(failure), text))


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(served, "FIRST_PAUSE_S", 0.01)
    server = Endpoint()
    yield server
    server.close()
