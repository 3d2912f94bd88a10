"""The rollout engines there are: one table, each with its settings in a recipe. Reading it never imports torch."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nanoalign.common.config import RUNTIME_ONLY, Section
from nanoalign.common.table import Entry


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
    """A vLLM server, in a process of its own, here or elsewhere."""

    kind: Literal["vllm_server"] = "vllm_server"
    server: Annotated[str | None, RUNTIME_ONLY] = Field(None, pattern=r"^https?://")
    """Its base URL (`VLLM_SERVER_DEV_MODE=1 nanoalign serve MODEL`); null starts one on this machine."""
    gpus: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1)
    """Of one started on this machine: which of the stage's GPUs it runs on, its tensors split over them (the stage
    itself trains on the first, 0); null is the trainer's own. NCCL needs others than the trainer's."""
    weights: Annotated[Literal["folder", "nccl"], RUNTIME_ONLY] = "folder"
    """How weights get there. folder: through a file system that both see; nccl: from GPU to GPU."""
    deadline_s: Annotated[float, RUNTIME_ONLY] = Field(1800.0, gt=0)
    """Seconds for one batch of completions, or one sync; a later answer counts as a lost server."""

    def servers(self) -> list[str | list[int]]:
        """Where each server is: its URL, or its GPUs on this machine, none for the trainer's own."""
        return [self.server if self.server is not None else self.gpus or []]

    @model_validator(mode="after")
    def _where_it_runs(self) -> Self:
        if self.gpus is not None and self.server is not None:
            raise ValueError("gpus: only for a server that the stage starts, one without `server`")
        if self.weights == "nccl" and self.server is None and 0 in (self.gpus or [0]):
            raise ValueError("weights: nccl needs a server on GPUs of its own: set `gpus`, without 0, the trainer's")
        return self


@dataclass(frozen=True)
class EngineEntry(Entry):
    """``code`` makes an engine of its settings and a :class:`rollouts.base.Opening`."""

    settings: type[Section]
    """Its section of a recipe; ``kind`` there is its name here."""


ENGINES = {
    "hf": EngineEntry("nanoalign.rollouts.hf:open_hf", "generates in process: CPU, small models, LoRA", HFSettings),
    "vllm": EngineEntry("nanoalign.rollouts.vllm:open_vllm", "vLLM in process, on the trainer's GPU", VLLMSettings),
    "vllm_server": EngineEntry(
        "nanoalign.rollouts.server:open_server", "a vLLM server, here or elsewhere", ServerSettings),
}  # fmt: skip
