"""Recipe sections on how a model is asked: engine, sampling, thinking."""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_serializer
from pydantic.functional_serializers import SerializerFunctionWrapHandler

from nanoalign.common.config import RUNTIME_ONLY, Section
from nanoalign.rollouts.engines import ENGINES, HFSettings, ServerSettings, VLLMSettings


def _written_out(engine: Any) -> Any:
    """``engine: vllm`` is short for ``engine: {kind: vllm}``."""
    return {"kind": engine} if isinstance(engine, str) else engine


if TYPE_CHECKING:
    Engine = HFSettings | VLLMSettings | ServerSettings
    EngineOrName = Engine
else:
    Engine = Annotated[reduce(or_, (entry.settings for entry in ENGINES.values())), Field(discriminator="kind")]
    EngineOrName = Annotated[Engine, BeforeValidator(_written_out, json_schema_input_type=Literal[*ENGINES] | Engine)]


class Rollouts(Section):
    """How completions are sampled."""

    engine: EngineOrName = HFSettings()
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

    ahead: int = Field(0, ge=0)
    """GRPO on `vllm_server`: how many optimizer steps the engine may sample ahead of the trainer, so that both work at
    the same time. A completion is trained on with weights at most so many steps newer than those that began it; 0:
    they wait for each other."""

    def longest_wait_s(self) -> int:
        """Seconds for which other processes may have to wait for the one that asks the engine: as long as a server that
        is lost, restarted and lost again may take, and half an hour at least."""
        deadline_s, restarts = (getattr(self.engine, name, 0) for name in ("deadline_s", "restarts"))
        return 1800 + round(deadline_s * (restarts + 1))

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
    budgets: list[Annotated[int, Field(ge=0)] | None] = Field(default=[None], min_length=1)
    """Thinking budgets in tokens, drawn uniformly for prompts with thinking on; null is unlimited."""


class McpTools(Section):
    """The tools of an MCP server over stdio."""

    mcp: str = Field(min_length=1)
    """Its command, as in `python my_server.py`; `python` is the one that runs nanoalign."""
    folder: Annotated[str | None, RUNTIME_ONLY] = None
    """Where it runs; null is the recipe's folder."""


class EnvironmentUse(Section):
    """An environment, and what it is made with."""

    name: str
    """A name of the table (docs/names.md), or your own: FILE.py:NAME beside the recipe or package.module:NAME."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Keywords for your class or function."""
    tools: list[str | McpTools] = Field(default_factory=list)
    """Tools on top of the environment's own: functions (FILE.py:NAME) and MCP servers (`{mcp: python server.py}`)."""
    deadline_s: float = Field(10.0, gt=0)
    """Seconds that a call of a tool, or of a method of your environment, may take."""

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> Any:
        """A name alone is written as such, as before there were parameters."""
        full = handler(self)
        return self.name if self == EnvironmentUse(name=self.name) else full


def _named(use: Any) -> Any:
    """``environment: workbench`` is short for ``environment: {name: workbench}``."""
    return {"name": use} if isinstance(use, str) else use


if TYPE_CHECKING:
    EnvironmentOrName = EnvironmentUse
else:
    EnvironmentOrName = Annotated[EnvironmentUse, BeforeValidator(_named, json_schema_input_type=str | EnvironmentUse)]
