"""Recipe section of a supervised fine-tuning stage."""

from typing import Literal

from pydantic import Field

from nanoalign.common.config import Section
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


class SFTStage(Section):
    """Supervised fine-tuning on a mixture."""

    kind: Literal["sft"]
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
