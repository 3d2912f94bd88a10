"""``nanoalign serve MODEL``: vLLM's OpenAI server with thinking budgets per request.

A request (completions or chat) may carry ``"thinking_budget": 512`` and ``"grace": 500``; ``max_thinking_tokens`` is
another name for the former, null means unlimited. Without a budget a request runs as in plain vLLM.
"""

import ipaddress
import json
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, NoReturn

from nanoalign.common.errors import ConfigError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def serve_command(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    tags: tuple[str, str] = ("<think>", "</think>"),
    vllm_arguments: Sequence[str] = (),
    budgets: bool = True,
) -> list[str]:
    """The command that starts the server. ``vllm_arguments`` are those of ``vllm serve``, passed on as they are.
    Without ``budgets`` requests can have none, and vLLM need not wait for a step's tokens before it prepares the next.
    """
    processor = ["--logits-processors", "nanoalign.budget_control.vllm:ThinkingBudget"] if budgets else []
    return [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model,
        "--host", host, "--port", str(port), *processor,
        "--additional-config", json.dumps({"thinking_tags": tags}),
        "--middleware", "nanoalign.budget_control.serve.BudgetFields",
        "--middleware", "nanoalign.budget_control.token_route.TokenRoute",
        *vllm_arguments,
    ]  # fmt: skip


def serve_environment(host: str, api_key: str | None, budgets: bool = True) -> dict[str, str]:
    """The server's environment. The key travels here: a command line can be read by everyone on the machine.

    Raises ConfigError for an address other than loopback without a key.
    """
    if not _is_loopback(host) and not api_key:
        raise ConfigError(f"serving on {host} is open to the network: give an API key, or serve on 127.0.0.1")
    # vLLM's second model runner, faster on GPUs, takes logits processors of another kind; see budget_control/vllm.py.
    environment = dict(os.environ) | ({"VLLM_USE_V2_MODEL_RUNNER": "0"} if budgets else {})
    return environment | ({"VLLM_API_KEY": api_key} if api_key else {})


def serve(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    tags: tuple[str, str] = ("<think>", "</think>"),
    vllm_arguments: Sequence[str] = (),
) -> NoReturn:
    """Becomes the server: the process is replaced and does not return."""
    environment = serve_environment(host, api_key)
    command = serve_command(model, host=host, port=port, tags=tags, vllm_arguments=vllm_arguments)
    os.execve(command[0], command, environment)


class BudgetFields:
    """ASGI middleware: lifts ``thinking_budget``, ``max_thinking_tokens`` and ``grace`` of a JSON body to where vLLM
    looks for arguments of logits processors (``vllm_xargs``)."""

    def __init__(self, app: Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not str(scope["path"]).endswith("/completions"):
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        body = lift_budget(body)
        headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> MutableMapping[str, Any]:
            return next(messages, None) or await receive()

        await self.app(scope, replay, send)


def lift_budget(body: bytes) -> bytes:
    """The body of a request with its budget fields in ``vllm_xargs``. What is not a JSON object, or carries none, is
    returned as it is, for vLLM to judge."""
    try:
        return _lifted(json.loads(body)) or body
    except (ValueError, RecursionError):
        return body


def _lifted(request: Any) -> bytes | None:
    if not isinstance(request, dict) or not isinstance(request.get("vllm_xargs") or {}, dict):
        return None
    fields = {"thinking_budget": "thinking_budget", "max_thinking_tokens": "thinking_budget", "grace": "grace"}
    found = {fields[name]: request.pop(name) for name in list(request) if name in fields}
    given = {name: value for name, value in found.items() if value is not None}
    if not found:
        return None
    if given:
        request["vllm_xargs"] = {**(request.get("vllm_xargs") or {}), **given}
    return json.dumps(request).encode()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
