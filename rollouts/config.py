"""Recipe sections on how a model is asked: engine, sampling, thinking."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nanoalign.common.config import HOW_IT_RUNS, Section


class Rollouts(Section):
    """How completions are sampled."""

    engine: Literal["hf", "vllm", "vllm_server"] = "hf"
    """hf: batched generation in process (CPU, small models); vllm: colocated vLLM; vllm_server: a vLLM server in a
    process of its own, here or elsewhere."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling."""
    max_tokens: int = Field(ge=1)
    """Longest completion in tokens, thinking included."""
    grace: int = Field(500, ge=0)
    """Tokens past a thinking budget in which a newline is awaited."""
    batch_size: int = Field(64, ge=1)
    """Sequences generated together."""
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """vllm and vllm_server: precision of weights and activations; null is that of training. float16 rounds eight times
    finer than bfloat16 and ends at 65,504; a trainer that rounds its weights to bfloat16 is met best by the same."""
    gpu_memory: Annotated[float, HOW_IT_RUNS] = Field(0.45, gt=0, lt=1)
    """vllm: share of the GPU's memory for its weights and cache; the trainer lives on the rest."""
    cache_gb: Annotated[float | None, HOW_IT_RUNS] = Field(None, gt=0)
    """vllm and vllm_server: its cache in GB, in place of what gpu_memory leaves for it; for GPUs that several stages
    share, where vLLM would take what a neighbour allocates for its own."""
    sleep: Annotated[Literal[0, 1, 2], HOW_IT_RUNS] = 0
    """vllm on a GPU: what is given back while the trainer works. 0: nothing; 1: the cache, and the weights wait in the
    host's memory; 2: cache and weights (they come anew with every sync)."""
    server: Annotated[str | None, HOW_IT_RUNS] = Field(None, pattern=r"^https?://")
    """vllm_server: its base URL (`VLLM_SERVER_DEV_MODE=1 nanoalign serve MODEL`); null starts one on this machine."""
    gpus: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1)
    """vllm_server: for one started on this machine, which of the stage's GPUs it runs on, its tensors split over them
    (the stage itself trains on the first, 0); null is the trainer's own. NCCL asks for others than the trainer's."""
    weights: Annotated[Literal["folder", "nccl"], HOW_IT_RUNS] = "folder"
    """vllm_server: how weights get there. folder: through a file system that both see; nccl: from GPU to GPU."""
    deadline_s: Annotated[float, HOW_IT_RUNS] = Field(1800.0, gt=0)
    """vllm_server: seconds for one batch of completions, or one sync; a later answer counts as a lost server."""
    restarts: Annotated[int, HOW_IT_RUNS] = Field(2, ge=0)
    """vllm and vllm_server: how often in a row a lost engine is started anew (or, at a `server`, asked again) before
    the stage ends with an error."""

    @model_validator(mode="after")
    def _of_this_engine(self) -> Self:
        if self.server is not None and self.engine != "vllm_server":
            raise ValueError(f"server: engine {self.engine} asks none; set `engine: vllm_server`")
        if self.gpus is not None and (self.engine != "vllm_server" or self.server is not None):
            raise ValueError("gpus: only for a server that the stage starts: `engine: vllm_server` without `server`")
        if self.weights == "nccl" and self.server is None and self.engine == "vllm_server" and 0 in (self.gpus or [0]):
            raise ValueError("weights: nccl needs a server on GPUs of its own: set `gpus`, without 0, the trainer's")
        if self.sleep and self.engine != "vllm":
            raise ValueError(f"sleep: engine {self.engine} does not sleep; only vllm does")
        return self

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
