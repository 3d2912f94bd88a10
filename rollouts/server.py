"""One vLLM server: another process, GPU or node, over HTTP with token ids in and out. pool.py asks it.

Weights go by NCCL (nccl.py), or through a folder that both sides see (``reload_weights`` of a path), which needs no
GPU. The server is started with VLLM_SERVER_DEV_MODE=1, for these routes:

    VLLM_SERVER_DEV_MODE=1 nanoalign serve MODEL -- --weight-transfer-config '{"backend": "nccl"}'
"""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from nanoalign.budget_control.token_route import ROUTE
from nanoalign.common.errors import ConfigError
from nanoalign.rollouts.base import EngineLostError
from nanoalign.rollouts.nccl import NCCLTransfer

CONTROL_S = 60.0
"""Seconds in which a server must do what takes no time: stop generating, go on, say what it serves."""


class Server:
    """The server at ``url``.

    Raises EngineLostError from any method where the server is gone, fails, or gives no answer in ``deadline_s`` seconds
    (CONTROL_S for what takes no time; of completions that were asked for together, none between two answers);
    ConfigError where it refuses a request.
    """

    def __init__(self, url: str, deadline_s: float, *, on_cpu: bool = False, nccl_device: int | None = None) -> None:
        """``on_cpu``: it runs on the CPU with :class:`rollouts.vllm.PackedHead`; ``nccl_device``: the trainer's GPU,
        from which weights go by NCCL."""
        self.url, self.deadline_s, self.on_cpu = url.rstrip("/"), deadline_s, on_cpu
        self.control_s = min(CONTROL_S, deadline_s)
        served = self.ask("/v1/models", seconds=self.control_s)["data"][0]
        self.max_length: int | None = served.get("max_model_len")
        self.transfer = None if nccl_device is None else NCCLTransfer(self.ask, self.url, deadline_s, nccl_device)

    def complete(self, bodies: Sequence[Mapping[str, Any]], take: Callable[[int, dict[str, Any]], object]) -> None:
        """Asks :class:`budget_control.token_route.TokenRoute` for completions, in one request; ``take`` gets the place
        and the answer of each as it comes. One that :meth:`pause` cut off ended with "abort"."""
        left = len(bodies)
        with self._asked(ROUTE, bodies, self.deadline_s) as answers:
            for line in answers:
                answer = json.loads(line)
                take(answer["place"], answer)
                left -= 1
            if left:
                raise ValueError(f"the connection ended before {left} answers")

    def refusal(self, answer: Mapping[str, Any]) -> ConfigError | None:
        """Why it does not complete a request, where that is what it answers."""
        return ConfigError(f"{self.url} refuses the request: {answer['error']}") if "error" in answer else None

    def pause(self) -> None:
        """Cuts off what is being generated or waits for it, and forgets what was cached; later requests wait."""
        self.ask("/pause?mode=abort", {}, self.control_s)

    def resume(self) -> None:
        self.ask("/resume", {}, self.control_s)

    def load_folder(self, folder: Path) -> None:
        """The weights of a model folder that the server sees under the same path."""
        self.ask("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder.resolve())}})

    def refresh(self) -> None:
        """After new weights: forgets what was computed from the old ones."""
        if self.on_cpu:
            self.ask("/collective_rpc", {"method": "repack_head"})
        self.ask("/reset_prefix_cache", {}, self.control_s)

    @property
    def by_nccl(self) -> NCCLTransfer:
        """The way for weights of a server that was opened with ``nccl_device``."""
        if self.transfer is None:
            raise EngineLostError(f"{self.url}: no connection for weights")
        return self.transfer

    def close(self) -> None:
        """Ends the connection for weights."""
        if self.transfer is not None:
            self.transfer.close()

    def ask(self, route: str, body: Mapping[str, Any] | None = None, seconds: float | None = None) -> Any:
        """JSON of a GET, or of a POST where there is a body."""
        with self._asked(route, body, seconds or self.deadline_s) as answer:
            text = answer.read()
            return json.loads(text) if text else {}

    @contextmanager
    def _asked(self, route: str, body: Any, seconds: float) -> Iterator[Any]:
        """The open response; what goes wrong with it, while it is read too, is one of our errors."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + route, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=seconds) as response:
                yield response
        except ConfigError:  # of what reads it; a ValueError too
            raise
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")[:500]
            if error.code == 404:
                raise ConfigError(
                    f"{self.url}: no route {route}; start it as VLLM_SERVER_DEV_MODE=1 nanoalign serve MODEL"
                ) from error
            if error.code < 500:
                raise ConfigError(f"{self.url}{route}: the server refuses the request: {reason}") from error
            raise EngineLostError(f"{self.url}{route}: {error.code} {reason}") from error
        except (OSError, HTTPException, ValueError) as error:  # gone, too late, or cut off in an answer
            raise EngineLostError(f"{self.url}{route}: {error or type(error).__name__}") from error
