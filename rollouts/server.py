"""The rollout engine on a vLLM server: another process, GPU or node, over HTTP with token ids in and out.

Weights go by NCCL, through vLLM's weight-transfer engine as TRL drives it, or through a folder that both sides see
(``reload_weights`` of a path), which needs no GPU. The server is started with VLLM_SERVER_DEV_MODE=1, for these routes:

    VLLM_SERVER_DEV_MODE=1 nanoalign serve MODEL -- --weight-transfer-config '{"backend": "nccl"}'
"""

import json
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nanoalign.budget_control.rule import BudgetRule
from nanoalign.common.errors import ConfigError
from nanoalign.common.files import atomic_folder
from nanoalign.models.loading import resolve
from nanoalign.rollouts.base import Completion, EngineLostError, Opening, Request, Sampling
from nanoalign.rollouts.engines import ServerSettings
from nanoalign.rollouts.local_server import LocalServer
from nanoalign.rollouts.restarts import RestartingEngine
from nanoalign.rollouts.vllm import vllm_options


class ServerEngine:
    """A :class:`rollouts.base.RolloutEngine` at ``url``.

    Raises EngineLostError from any method where the server is gone, fails, or gives no answer in ``deadline_s`` seconds
    to all that one call asks; ConfigError where it refuses a request.
    """

    def __init__(
        self, url: str, settings: ServerSettings, opening: Opening, exchange: Path, own: LocalServer | None = None
    ) -> None:
        """``exchange`` is the folder through which weights go; ``own`` a server that ends with this engine."""
        self.url, self.thinking, self.own, self.lost = url.rstrip("/"), opening.thinking, own, 0
        self.exchange = exchange
        self.dtype = getattr(torch, settings.dtype or opening.dtype)
        """That of the server's matrices."""
        self.deadline_s, self.parallel = settings.deadline_s, opening.batch_size
        served = self._ask("/v1/models")["data"][0]
        self.model = served["id"]
        self.max_length: int | None = served.get("max_model_len")
        self.transfer: Any = None
        if settings.weights == "nccl":
            from trl.generation.vllm_client import VLLMClient

            self.transfer = VLLMClient(base_url=self.url)
            self.transfer.init_communicator(device=torch.cuda.current_device())

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion a request, in order. The server batches them; the longest ends last."""
        answers = self._ask_all([self._body(request) for request in requests])
        return [self._completion(request, answer) for request, answer in zip(requests, answers, strict=True)]

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replaces the weights, and forgets what was cached under the old ones."""
        weights = [(name, self._as_served(tensor.detach())) for name, tensor in tensors]
        if self.transfer is not None:
            shapes = [(name, str(each.dtype).removeprefix("torch."), list(each.shape)) for name, each in weights]
            self.transfer.update_named_params(shapes, iter(weights))
        else:
            with atomic_folder(self.exchange) as temporary:
                save_file(_unshared(weights), temporary / "model.safetensors")
            self.load_folder(self.exchange)
        if self.own is not None and not torch.cuda.is_available():
            self._ask("/collective_rpc", {"method": "repack_head"})
        self._ask("/reset_prefix_cache", {})

    def load_folder(self, folder: Path) -> None:
        """The weights of a model folder that the server sees under the same path."""
        self._ask("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder.resolve())}})

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of every token but the first, by the server's own forward pass over prompts."""
        asked = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        answers = self._ask_all([{"prompt": list(sequence), **asked} for sequence in sequences])
        return [
            [
                entry[str(token)]["logprob"]
                for token, entry in zip(sequence[1:], answer["prompt_logprobs"][1:], strict=True)
            ]
            for sequence, answer in zip(sequences, answers, strict=True)
        ]

    def sleep(self) -> None:
        """A server keeps its memory: it has GPUs of its own."""

    def close(self) -> None:
        """Ends the connection for weights, and the server where it is our own."""
        if self.transfer is not None:
            self.transfer.close_communicator()
        if self.own is not None:
            self.own.stop()

    def _as_served(self, tensor: torch.Tensor) -> torch.Tensor:
        """Matrices in the server's dtype; vectors, which it may keep in fp32 (Mamba's A, D and dt), as they are."""
        return tensor.to(self.dtype) if tensor.dim() > 1 and tensor.is_floating_point() else tensor

    def _body(self, request: Request) -> dict[str, Any]:
        sampling: Sampling = request.sampling
        body: dict[str, Any] = {
            "prompt": list(request.prompt_ids),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "stop_token_ids": sorted(self.thinking.stop_ids),
            "logprobs": 0 if sampling.thinking_budget is None else 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        if sampling.thinking_budget is not None:
            body["vllm_xargs"] = {"thinking_budget": sampling.thinking_budget, "grace": sampling.grace}
        return body

    def _completion(self, request: Request, answer: dict[str, Any]) -> Completion:
        if answer["finish_reason"] not in ("stop", "length"):
            raise EngineLostError(f"{self.url}: a completion ended with {answer['finish_reason']!r}")
        token_ids, sampling = tuple(answer["token_ids"]), request.sampling
        rule = BudgetRule(self.thinking, sampling.thinking_budget, sampling.grace)
        drawn = answer["logprobs"]
        stopped = None
        if sampling.thinking_budget is not None:
            stops = {f"token_id:{token}" for token in self.thinking.stop_ids}
            stopped = [max(tokens, key=tokens.__getitem__) in stops for tokens in drawn["top_logprobs"]]
        forced = tuple(rule.forced_mask(request.prompt_ids, token_ids, stopped))
        return Completion(token_ids, tuple(drawn["token_logprobs"]), forced, answer["finish_reason"])

    def _ask_all(self, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The only choice of each completion."""
        threads = ThreadPoolExecutor(self.parallel)
        try:
            asked = [threads.submit(self._ask, "/v1/completions", {"model": self.model, **body}) for body in bodies]
            _, late = wait(asked, timeout=self.deadline_s)
            if late:
                raise EngineLostError(
                    f"{self.url}: {len(late)} of {len(asked)} answers did not arrive within {self.deadline_s:g} s"
                )
            return [each.result()["choices"][0] for each in asked]
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _ask(self, route: str, body: dict[str, Any] | None = None) -> Any:
        """JSON of a GET, or of a POST where there is a body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + route, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.deadline_s) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")[:500]
            if route != "/v1/completions" and error.code == 404:
                raise ConfigError(
                    f"{self.url}: no route {route}; start the server with VLLM_SERVER_DEV_MODE=1"
                ) from error
            if error.code < 500:
                raise ConfigError(f"{self.url}{route}: the server refuses the request: {reason}") from error
            raise EngineLostError(f"{self.url}{route}: {error.code} {reason}") from error
        except (OSError, urllib.error.URLError) as error:
            raise EngineLostError(f"{self.url}{route}: {error}") from error
        return json.loads(text) if text else {}


def _unshared(weights: Sequence[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Each storage once, under its first name: safetensors takes no tensor twice, and vLLM ties tied weights itself."""
    first: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in weights:
        first.setdefault(tensor.data_ptr(), (name, tensor.contiguous()))
    return dict(first.values())


def command_line(options: Mapping[str, Any]) -> list[str]:
    """vLLM's arguments as its command takes them; None is left out."""
    arguments = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            arguments += [f"--{flag}", str(value)]
    return arguments


def open_server(settings: ServerSettings, opening: Opening) -> RestartingEngine:
    """The engine at ``settings.server``, or on a server of our own, restarted or asked again where it is lost.

    Raises:
        ConfigError: our own server does not start. EngineLostError: the other one does not answer.
    """
    exchange = opening.exchange or Path(tempfile.mkdtemp(prefix="nanoalign-exchange-"))
    opening = replace(opening, model=resolve(opening.model), exchange=exchange)
    return RestartingEngine(lambda: _server(settings, opening, exchange), settings.restarts)


def _server(settings: ServerSettings, opening: Opening, exchange: Path) -> ServerEngine:
    """The server, with the model's weights."""
    own = None
    if settings.server is None:
        arguments = command_line(vllm_options(settings, opening))
        if settings.weights == "nccl":
            arguments += ["--weight-transfer-config", json.dumps({"backend": "nccl"})]
        if not torch.cuda.is_available():
            arguments += ["--worker-extension-cls", "nanoalign.rollouts.vllm.PackedHead"]
        if settings.gpus is not None:
            arguments += ["--tensor-parallel-size", str(len(settings.gpus))]
        own = LocalServer(opening.model, opening.tags, exchange / "server.log", arguments, settings.gpus)
    engine = ServerEngine(own.url if own else str(settings.server), settings, opening, exchange / "weights", own)
    if own is None:
        engine.load_folder(opening.model)
    return engine
