"""``nanoalign serve``: its command, its request fields, and vLLM's real server on loopback with both enforcements."""

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny_llama, tiny_tokenizer

from nanoalign.budget_control.client import Server, ServerError
from nanoalign.budget_control.rule import BudgetRule
from nanoalign.budget_control.serve import BudgetFields, lift_budget, serve_command, serve_environment
from nanoalign.budget_control.token_route import ROUTE
from nanoalign.budget_control.vocabulary import ThinkingTokens
from nanoalign.common.errors import ConfigError

KEY = "local-test-key"


def test_open_to_the_network_only_with_a_key() -> None:
    with pytest.raises(ConfigError, match="open to the network"):
        serve_environment("0.0.0.0", None)
    assert serve_environment("0.0.0.0", KEY)["VLLM_API_KEY"] == KEY
    for host in ("127.0.0.1", "localhost", "::1"):
        assert "VLLM_API_KEY" not in {k: v for k, v in serve_environment(host, None).items() if k not in os.environ}
    assert KEY not in " ".join(serve_command("model", port=1))


@pytest.mark.parametrize(
    ("body", "lifted"),
    [
        ({"a": 1}, {"a": 1}),
        ({"thinking_budget": 5, "grace": 2}, {"vllm_xargs": {"thinking_budget": 5, "grace": 2}}),
        ({"max_thinking_tokens": 5, "vllm_xargs": {"x": 1}}, {"vllm_xargs": {"x": 1, "thinking_budget": 5}}),
        ({"thinking_budget": None}, {}),
        ([1, 2], [1, 2]),
        ({"thinking_budget": 5, "vllm_xargs": None}, {"vllm_xargs": {"thinking_budget": 5}}),
        ({"thinking_budget": 5, "vllm_xargs": [1]}, {"thinking_budget": 5, "vllm_xargs": [1]}),
        ({"thinking_budget": {"a": "\ud800"}}, {"vllm_xargs": {"thinking_budget": {"a": "\ud800"}}}),
    ],
)
def test_budget_fields_are_lifted(body: Any, lifted: Any) -> None:
    assert json.loads(lift_budget(json.dumps(body).encode())) == lifted
    for sent in (b"no json", b"", b"\xff", b"[" * 100_000, b'{"thinking_budget": ' + b"9" * 5000 + b"}"):
        assert lift_budget(sent) == sent


def test_the_middleware_rewrites_a_body_that_comes_in_pieces() -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        seen.update(json.loads(message["body"]), length=dict(scope["headers"])[b"content-length"])

    body = b'{"thinking_budget": 7}'
    pieces: Iterator[dict[str, Any]] = iter([{"body": body[:9], "more_body": True}, {"body": body[9:]}])

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", **next(pieces)}

    async def send(message: Any) -> None: ...

    scope = {"type": "http", "path": "/v1/chat/completions", "headers": [(b"content-length", b"22")]}
    asyncio.run(BudgetFields(app)(scope, receive, send))
    assert seen == {"vllm_xargs": {"thinking_budget": 7}, "length": b"38"}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    folder = save_tiny_llama(tmp_path_factory.mktemp("served"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    arguments = ["--served-model-name", "tiny", "--enforce-eager", "--dtype", "float32", "--max-model-len", "256",
                 "--max-num-seqs", "4"]  # fmt: skip
    environment = serve_environment("127.0.0.1", KEY) | {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        serve_command(str(folder), port=port, vllm_arguments=arguments), env=environment, stdout=log,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield port
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)
        log.close()


def post(port: int, body: Any, key: str = KEY, route: str = "/v1/completions") -> tuple[int, dict[str, Any]]:
    response = asked(port, {"model": "tiny", **body} if isinstance(body, dict) else body, key, route)
    return response.status, json.loads(response.read())


def asked(port: int, body: Any, key: str, route: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request("POST", route, json.dumps(body), headers)
    return connection.getresponse()


def lines(port: int, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers of the route for rollouts, in the order of the requests."""
    response = asked(port, bodies, KEY, ROUTE)
    assert response.status == 200
    return sorted(map(json.loads, response), key=lambda answer: answer["place"])


def test_the_server_keeps_budgets_and_the_client_needs_no_plugin_to_do_the_same(port: int) -> None:
    tokenizer = tiny_tokenizer()
    tokens = ThinkingTokens.from_tokenizer(tokenizer)
    prompt = tokenizer.encode("so it goes. <think>\n")
    there = Server(f"http://127.0.0.1:{port}/v1", "tiny", KEY)
    served = {}
    for budget in (None, 0, 4, 9):
        body = {"prompt": prompt, "max_tokens": 30, "temperature": 0, "return_token_ids": True, "grace": 5}
        status, answer = post(port, body | {"thinking_budget": budget})
        assert status == 200, answer
        served[budget] = answer["choices"][0]["token_ids"]
        rule = BudgetRule(tokens, budget, grace=5)
        assert budget is None or rule.thinking_tokens(prompt, served[budget]) <= rule.longest_thinking
        outside = there.complete(prompt, rule, 30, temperature=0)
        assert [token.id for token in outside if token.id is not None] == served[budget]
    assert len({tuple(ids) for ids in served.values()}) == 4


def test_wrong_requests_are_refused(port: int) -> None:
    status, answer = post(port, {"prompt": [5], "thinking_budget": -3})
    assert status == 400 and "expected a number of tokens >= 0, got -3" in json.dumps(answer)
    assert post(port, {"prompt": [5]}, key="guessed")[0] == 401
    with pytest.raises(ServerError, match="HTTP 401"):
        list(Server(f"http://127.0.0.1:{port}/v1", "tiny").complete([5], BudgetRule(
            ThinkingTokens.from_tokenizer(tiny_tokenizer()), None), 3))  # fmt: skip


def test_rollouts_get_tokens_as_numbers_from_a_route_behind_the_key(port: int) -> None:
    prompt = tiny_tokenizer().encode("so it goes. <think>\n")
    drawn = {"prompt": prompt, "max_tokens": 20, "temperature": 0, "logprobs": 1, "vllm_xargs": {"thinking_budget": 4}}
    status, answer = post(port, drawn | {"return_token_ids": True, "return_tokens_as_token_ids": True})
    said = answer["choices"][0]
    assert status == 200, answer
    scored = {"prompt": prompt, "max_tokens": 1, "prompt_logprobs": True}
    found, scores = lines(port, [drawn, scored])
    assert (found["token_ids"], found["finish_reason"]) == (said["token_ids"], said["finish_reason"])
    assert found["logprobs"] == pytest.approx(said["logprobs"]["token_logprobs"], abs=1e-5)
    tops = [max(each, key=each.__getitem__) for each in said["logprobs"]["top_logprobs"]]
    assert [f"token_id:{token}" for token in found["likeliest"]] == tops
    assert len(scores["prompt_logprobs"]) == len(prompt) - 1
    assert all(each <= 0 for each in scores["prompt_logprobs"])
    assert post(port, [drawn], key="guessed", route=ROUTE)[0] == 401
    assert post(port, drawn, route=ROUTE)[0] == 400
    wrong = (
        ({"max_tokens": 5}, "prompt"), (drawn | {"max_tokens": 256}, "256"), (drawn | {"top_p": 7}, "top_p"),
        (drawn | {"vllm_xargs": {"thinking_budget": -3}}, "-3"), (drawn | {"prompt": [10**9]}, "10000"),
    )  # fmt: skip
    answers = lines(port, [drawn, *(body for body, _ in wrong)])
    assert "error" not in answers[0], answers
    assert answers[0]["token_ids"] == found["token_ids"]  # a wrong request is no other's concern
    for (_, reason), answer in zip(wrong, answers[1:], strict=True):
        assert reason in answer["error"]
