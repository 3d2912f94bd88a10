"""Recipe sections that every training stage shares."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from nanoalign.common.config import RUNTIME_ONLY, Section

HELD_OUT = 64
"""At most this many samples or prompts are held out of training, to measure on."""
HELD_OUT_SHARE = 50
"""One of this many is held out."""


class LoRA(Section):
    """Train low-rank adapters (peft) instead of all weights; the stage's output is the merged model."""

    rank: int = Field(16, ge=1)
    """Rank of the update."""
    alpha: int = Field(32, ge=1)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: list[str] = Field(
        min_length=1,
        default=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj", "in_proj", "out_proj"],
    )
    """Linear modules by the last part of their name; in_proj and out_proj are Mamba's. Each must match a module, or
    belong to an absent kind of block (gate_proj in a model without gates is fine; a typo is an error)."""


class Training(Section):
    """Optimizer, schedule and batch of a training stage. AdamW throughout."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """cosine: to min_lr_ratio over the stage; constant; wsd: warm-up, stable, linear decay over decay_ratio."""
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    """Share of the steps that warm up linearly from 0."""
    decay_ratio: float = Field(0.2, gt=0, le=1)
    """Share of the steps in which wsd decays."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Final learning rate over the peak one (cosine and wsd)."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the data; give this or steps, not both (default: one epoch)."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(8, ge=1)
    """Sequences (packs, pairs, completions) in an optimizer step over all devices."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Sequences in one forward pass on one device; divides batch_size. Default: batch_size over the devices."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW's decoupled weight decay."""
    betas: tuple[float, float] = Field((0.9, 0.95), strict=False)
    """AdamW's moment coefficients."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this global norm."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """bfloat16: autocast with fp32 master weights; float32 on CPU."""
    precision: Literal["fp8"] | None = None
    """fp8: products of most projections in E4M3, in blocks of 128x128 and tiles of 1x128, as Nemotron Nano v2 was
    trained; needs a Hopper GPU and dtype bfloat16, and `plan` says what stays in bfloat16. None: dtype's."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass; Mamba-2 and MLP blocks then run tile by tile."""
    kernels: Literal["auto", "torch", "triton"] = "auto"
    """Of Mamba-2 blocks on CUDA: auto takes Triton's where they are available and measured to agree with torch's."""
    tile: int = Field(16384, ge=16)
    """With gradient_checkpointing: tokens of a tile."""
    keep_blocks: int = Field(0, ge=0)
    """With gradient_checkpointing: this many blocks, evenly spread, keep their wide products instead of recomputing
    them; each takes 4 to 7 times the memory of its input, on the GPU or, with offload_gb, on the host."""
    offload_gb: float = Field(0.0, ge=0)
    """With gradient_checkpointing on CUDA: gigabytes of pinned host memory, a process, for the inputs of blocks and the
    products that keep_blocks keeps, the first ones saved; the rest stays on the GPU. Near the GPU's limit set
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, or memory becomes fragmented."""
    checkpoint_every: Annotated[int, RUNTIME_ONLY] = Field(100, ge=1)
    """Optimizer steps between resumable checkpoints."""
    lora: LoRA | None = None
    """Low-rank adapters; None trains all weights."""

    def micro_batch(self, groups: int) -> int:
        """Sequences in one forward pass, where this many devices, or groups that share sequences, train together."""
        return self.micro_batch_size or max(1, self.batch_size // groups)


class EarlyStop(Section):
    """End training when the held-out loss falls, or GRPO's held-out reward rises, no more; the stage's model is that of
    the best measurement. Each improvement writes a checkpoint."""

    patience: int = Field(3, ge=1)
    """Measurements in a row without an improvement after which training ends."""
    min_improvement: float = Field(0.0, ge=0)
    """By how much the loss has to fall (nats per token), or the reward to rise, to count as improved."""


class MeasuredTraining(Training):
    """Training with a look at what is held out of it."""

    evaluate_every: int | None = Field(None, ge=1)
    """Optimizer steps between two measurements: of SFT's loss on samples that are held out (2% of them, 64 at most;
    None measures it before and after training), of GRPO's reward on prompts or tasks that are (`held_out`; None
    measures nothing)."""
    early_stop: EarlyStop | None = None
    """End before `epochs` or `steps` are done; needs evaluate_every."""


def _measured(train: Any) -> Any:
    """A :class:`Training` made in Python, without those two keys, is one of a stage's too."""
    return MeasuredTraining.model_validate(train.model_dump()) if type(train) is Training else train


Measured = Annotated[MeasuredTraining, BeforeValidator(_measured)]
