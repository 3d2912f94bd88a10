"""The rollout engines there are: one table, each with its settings in a recipe. Reading it never imports torch."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nanoalign.common.config import RUNTIME_ONLY, Section
from nanoalign.common.table import Entry

Url = Annotated[str, Field(pattern=r"^https?://")]


class HFSettings(Section):
    """Batched generation in process, on the trainer's own weights: CPU, small models."""

    kind: Literal["hf"] = "hf"


class _OnVLLM(Section):
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Precision of weights and activations; null is that of training. float16 rounds eight times finer than bfloat16
    and ends at 65,504; a trainer that rounds its weights to bfloat16 is best matched by the same."""
    gpu_memory: Annotated[float, RUNTIME_ONLY] = Field(0.45, gt=0, lt=1)
    """Share of the GPU's memory for its weights and cache; the trainer uses the rest."""
    cache_gb: Annotated[float | None, RUNTIME_ONLY] = Field(None, gt=0)
    """Its cache in GB, in place of what gpu_memory leaves for it; for GPUs that several stages share, where vLLM would
    take what a neighbour allocates for its own."""
    restarts: Annotated[int, RUNTIME_ONLY] = Field(2, ge=0)
    """How often in a row a lost engine is restarted (or, at a `server`, asked again) before the stage ends with an
    error."""


class VLLMSettings(_OnVLLM):
    """vLLM in the trainer's process, on its GPU."""

    kind: Literal["vllm"] = "vllm"
    sleep: Annotated[Literal[0, 1, 2], RUNTIME_ONLY] = 0
    """On a GPU: what is given back while the trainer works. 0: nothing; 1: the cache, and the weights wait in the
    host's memory; 2: cache and weights (every sync brings new ones)."""


class ServerSettings(_OnVLLM):
    """vLLM servers, in processes of their own, here or elsewhere."""

    kind: Literal["vllm_server"] = "vllm_server"
    server: Annotated[Url | list[Url] | None, RUNTIME_ONLY] = None
    """Its base URL (`VLLM_SERVER_DEV_MODE=1 nanoalign serve MODEL`), or those of several, which share the prompts; null
    starts servers on this machine."""
    gpus: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1)
    """Of those started on this machine: which of the stage's GPUs they run on (the stage itself trains on the first,
    0); null is one server on the trainer's own. NCCL needs others than the trainer's."""
    tensor_parallel: int | None = Field(None, ge=1)
    """GPUs over which each server's tensors are split, a divisor of the number of `gpus`: with 1, three GPUs are three
    servers; null makes one server of all."""
    weights: Annotated[Literal["folder", "nccl"], RUNTIME_ONLY] = "folder"
    """How weights get there. folder: through a file system that both see; nccl: from GPU to GPU."""
    partial: Literal["continue", "discard"] = "continue"
    """What becomes of a completion under way when new weights come in. continue: it goes on from its tokens, under the
    new weights; discard: it is sampled anew from the prompt."""
    deadline_s: Annotated[float, RUNTIME_ONLY] = Field(1800.0, gt=0)
    """Seconds for a completion, or for a sync; a later answer counts as a lost server."""

    @model_validator(mode="after")
    def _where_it_runs(self) -> Self:
        if self.gpus is not None and self.server is not None:
            raise ValueError("gpus: only for a server that the stage starts, one without `server`")
        if isinstance(self.server, list) and len({url.rstrip("/") for url in self.server}) < max(1, len(self.server)):
            raise ValueError("server: give each URL once, and one at least")
        if self.gpus is not None and len(set(self.gpus)) < len(self.gpus):
            raise ValueError("gpus: name each GPU once")
        if self.tensor_parallel is not None and self.gpus is None:
            raise ValueError("tensor_parallel: only for servers that the stage starts on `gpus`; set these")
        if self.gpus is not None and len(self.gpus) % (self.tensor_parallel or 1):
            raise ValueError(f"tensor_parallel: {self.tensor_parallel} does not divide the {len(self.gpus)} `gpus`")
        if self.weights == "nccl" and self.server is None and 0 in (self.gpus or [0]):
            raise ValueError("weights: nccl needs a server on GPUs of its own: set `gpus`, without 0, the trainer's")
        return self

    @property
    def urls(self) -> list[str]:
        """Of servers that others have started."""
        return [self.server] if isinstance(self.server, str) else list(self.server or ())

    @property
    def shares(self) -> list[list[int] | None]:
        """The GPUs of each server that the stage starts; None: the trainer's own."""
        if self.gpus is None:
            return [None]
        size = self.tensor_parallel or len(self.gpus)
        return [self.gpus[first : first + size] for first in range(0, len(self.gpus), size)]


@dataclass(frozen=True)
class EngineEntry(Entry):
    """``code`` makes an engine of its settings and a :class:`rollouts.base.Opening`."""

    settings: type[Section]
    """Its section of a recipe; ``kind`` there is its name here."""


ENGINES = {
    "hf": EngineEntry("nanoalign.rollouts.hf:open_hf", "generates in process: CPU, small models, LoRA", HFSettings),
    "vllm": EngineEntry("nanoalign.rollouts.vllm:open_vllm", "vLLM in process, on the trainer's GPU", VLLMSettings),
    "vllm_server": EngineEntry(
        "nanoalign.rollouts.keepers:open_server", "vLLM servers, here or elsewhere", ServerSettings),
}  # fmt: skip
