"""A route of ``nanoalign serve`` for rollouts: token ids in, token ids and log-probabilities out, as lists of numbers.

OpenAI's completions make text of every token and of every log-probability, which takes the server's processor longer
than a small model's decoding step takes its GPU.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from nanoalign.budget_control.serve import Receive, Send

ROUTE = "/v1/nanoalign/generate"
"""Below /v1, which vLLM guards with its API key."""


class TokenRoute:
    """ASGI middleware of vLLM's server that adds the route to its app as it starts, behind the app's authentication.

    It takes a list of requests, each ``{"prompt": [ids], "max_tokens": n}`` with, where wanted, ``temperature``,
    ``top_p``, ``seed``, ``stop_token_ids``, ``logprobs`` (0: of each token drawn; 1: and the likeliest token's id),
    ``prompt_logprobs`` (true: of each prompt token but the first) and ``vllm_xargs`` (a thinking budget). Each is
    answered by a line of JSON as soon as it is complete: its ``place`` in the list, ``token_ids``, ``finish_reason``
    ("abort" where a pause cut it off), ``logprobs``, ``likeliest`` and ``prompt_logprobs``, or ``error``, why it is
    refused.
    """

    def __init__(self, app: Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            scope["app"].add_route(ROUTE, generate, methods=["POST"])
        await self.app(scope, receive, send)


async def generate(request: Any) -> Any:
    """The route. A client that goes away ends its requests."""
    from starlette.responses import JSONResponse, StreamingResponse

    try:
        asked = json.loads(await request.body())
        if not isinstance(asked, list):
            raise ValueError("a list of requests is wanted")
    except ValueError as error:
        return JSONResponse({"error": str(error)}, 400)
    return StreamingResponse(_lines(request.app.state.engine_client, asked), media_type="application/x-ndjson")


async def _lines(engine: Any, asked: Sequence[Mapping[str, Any]]) -> AsyncIterator[str]:
    under_way = [asyncio.ensure_future(_line(engine, place, each)) for place, each in enumerate(asked)]
    try:
        for line in asyncio.as_completed(under_way):
            yield await line
    finally:
        for each in under_way:
            each.cancel()


async def _line(engine: Any, place: int, asked: Mapping[str, Any]) -> str:
    try:
        _require_room(asked, engine.vllm_config.model_config.max_model_len)
        parameters = sampling_parameters(asked, engine.vllm_config)
        outputs = engine.generate({"prompt_token_ids": asked["prompt"]}, parameters, f"tokens-{uuid.uuid4()}")
        said = read_output(asked, [each async for each in outputs][-1])
    except _refusals() as error:
        said = {"error": f"{type(error).__name__}: {error}"}
    return json.dumps({"place": place, **said}) + "\n"


def _refusals() -> tuple[type[Exception], ...]:
    """What vLLM's checks of a request raise, and ours."""
    try:
        from vllm.exceptions import VLLMClientError
    except ImportError:  # an older vLLM, where they are ValueErrors
        return ValueError, TypeError, KeyError
    return ValueError, TypeError, KeyError, VLLMClientError


def _require_room(asked: Mapping[str, Any], longest: int) -> None:
    length = len(asked["prompt"]) + asked["max_tokens"]
    if length > longest:
        raise ValueError(f"prompt and max_tokens together are {length} tokens, and the model takes {longest}")


def sampling_parameters(asked: Mapping[str, Any], config: Any) -> Any:
    """vLLM's parameters for a request as :class:`TokenRoute` takes it, in whatever process vLLM runs; ``config`` is
    its VllmConfig."""
    from vllm import SamplingParams
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind

    # The first model runner draws every seeded row of a GPU by itself, a kernel a row and token.
    seeded = current_platform.is_cpu() or config.use_v2_model_runner
    return SamplingParams(
        max_tokens=asked["max_tokens"],
        temperature=asked.get("temperature", 1.0),
        top_p=asked.get("top_p", 1.0),
        seed=asked.get("seed") if seeded else None,
        stop_token_ids=asked.get("stop_token_ids"),
        logprobs=asked.get("logprobs"),
        prompt_logprobs=0 if asked.get("prompt_logprobs") else None,
        flat_logprobs=True,  # lists instead of an object a token
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=asked.get("vllm_xargs"),
    )


def read_output(asked: Mapping[str, Any], output: Any) -> dict[str, Any]:
    """The answer to such a request, of vLLM's RequestOutput."""
    completion = output.outputs[0]
    answer: dict[str, Any] = {"token_ids": list(completion.token_ids), "finish_reason": completion.finish_reason}
    if (count := asked.get("logprobs")) is not None:  # the token drawn is the first of each place, the likeliest follow
        drawn = completion.logprobs
        answer["logprobs"] = [] if drawn is None else drawn.logprobs[:: count + 1]
        if count:
            answer["likeliest"] = [] if drawn is None else drawn.token_ids[1 :: count + 1]
    if asked.get("prompt_logprobs") and output.prompt_logprobs is not None:
        answer["prompt_logprobs"] = list(output.prompt_logprobs.logprobs)
    return answer
