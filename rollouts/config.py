"""Recipe sections on how completions are generated: engine, sampling, thinking."""

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from nanoalign.common.config import RUNTIME_ONLY, Section


class HFSettings(Section):
    """Batched generation in process, on the trainer's own weights: CPU, small models."""

    opens: ClassVar[str] = "nanoalign.rollouts.hf:open_hf"
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

    opens: ClassVar[str] = "nanoalign.rollouts.vllm:open_vllm"
    kind: Literal["vllm"] = "vllm"
    sleep: Annotated[Literal[0, 1, 2], RUNTIME_ONLY] = 0
    """On a GPU: what is given back while the trainer works. 0: nothing; 1: the cache, and the weights wait in the
    host's memory; 2: cache and weights (every sync brings new ones)."""


class ServerSettings(_OnVLLM):
    """A vLLM server, in a process of its own, here or elsewhere."""

    opens: ClassVar[str] = "nanoalign.rollouts.server:open_server"
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

    @model_validator(mode="after")
    def _where_it_runs(self) -> Self:
        if self.gpus is not None and self.server is not None:
            raise ValueError("gpus: only for a server that the stage starts, one without `server`")
        if self.weights == "nccl" and self.server is None and 0 in (self.gpus or [0]):
            raise ValueError("weights: nccl needs a server on GPUs of its own: set `gpus`, without 0, the trainer's")
        return self


Engine = HFSettings | VLLMSettings | ServerSettings
ENGINES: dict[str, type[Engine]] = {engine().kind: engine for engine in get_args(Engine)}
"""The rollout engines: by kind, each with its settings and, in ``opens``, where the code is (``module:function``)."""

Kind = Literal[*ENGINES]  # type: ignore[valid-type]
Tagged = Annotated[Engine, Field(discriminator="kind")]


def _written_out(engine: Any) -> Any:
    """``engine: vllm`` is short for ``engine: {kind: vllm}``."""
    return {"kind": engine} if isinstance(engine, str) else engine


class Rollouts(Section):
    """How completions are sampled."""

    engine: Annotated[Tagged, BeforeValidator(_written_out, json_schema_input_type=Kind | Tagged)] = HFSettings()
    """Who generates, and the settings of that engine: `vllm`, or `{kind: vllm, gpu_memory: 0.3}`."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling."""
    max_tokens: int = Field(ge=1)
    """Longest completion in tokens, including thinking."""
    grace: int = Field(500, ge=0)
    """Tokens past a thinking budget to wait for a newline."""
    batch_size: int = Field(64, ge=1)
    """Sequences generated together."""

    def require_room(self, budget: int) -> None:
        """Raises ValueError where a thinking budget and its grace leave no room for an answer."""
        if budget + self.grace >= self.max_tokens:
            raise ValueError(
                f"budget {budget} and grace {self.grace} leave no room for an answer in "
                f"rollouts.max_tokens {self.max_tokens}"
            )


class Thinking(Section):
    """Which modes and budgets the rollouts mix."""

    on: float = Field(1.0, ge=0, le=1)
    """Share of prompts with thinking on; the rest are /no_think."""
    budgets: list[int | None] = Field(default=[None], min_length=1)
    """Thinking budgets in tokens, drawn uniformly for prompts with thinking on; null is unlimited."""
