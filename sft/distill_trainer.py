"""Distillation in the trainer of documents: packs, checks, checkpoints and held-out documents are those of SFT."""

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from nanoalign.common.errors import ConfigError
from nanoalign.models.distillation import Divergence, DivergenceOutput, Teacher, add_divergence
from nanoalign.models.hybrid import use_kernels
from nanoalign.models.isolation import require_isolation
from nanoalign.models.labels import IGNORED, next_labels
from nanoalign.models.loss import linear_cross_entropy
from nanoalign.models.sequence_parallel import parallelize, sequence_group
from nanoalign.models.tiling import tile
from nanoalign.sft.trainer import HELD_OUT, DocumentTrainer

HELD_OUT_KL = "held_out_kl"
TEACHER_LOSS = "teacher_held_out_loss"
LABELS = ("labels", "shift_labels")


class DistillTrainer(DocumentTrainer):
    """Learns a teacher's distributions at the trained tokens of a :class:`sft.collate.Collator`'s rows.

    The loss is the mean of :class:`models.distillation.Divergence` over the trained tokens of the whole optimizer step.
    The log has the KL and the cross entropy that make it up; held-out documents are measured by both, at temperature 1
    over the whole vocabulary, so that stages compare.
    """

    held_out_names = (HELD_OUT, HELD_OUT_KL)

    def __init__(self, *args: Any, teacher: Teacher, divergence: Divergence, **kwargs: Any) -> None:
        self.teacher = teacher
        super().__init__(*args, **kwargs)
        add_divergence(self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model, divergence)
        self.seen = torch.zeros(3, dtype=torch.float64, device=self.args.device)
        """KL, cross entropy and tokens since the last row of the log."""
        self._prepare_teacher()

    def _prepare_teacher(self) -> None:
        """Kernels, tiles and sequence parallelism as the student has them; once for all phases."""
        model, ranks = self.teacher.model, self.data_collator.ranks
        if getattr(model, "prepared", False):
            return
        model.prepared = True
        if ranks > 1:
            try:
                parallelize(model, sequence_group(ranks))
            except ConfigError as error:
                raise ConfigError(f"teacher: {error}") from None
        use_kernels(model, self.recipe.kernels, model.device)
        if self.recipe.gradient_checkpointing:
            tile(model, self.recipe.tile)

    def check(self) -> None:
        """As :meth:`DocumentTrainer.check`; the teacher's documents must not see each other either."""
        super().check()
        batch, concatenated = self.probe()
        if not concatenated:
            with torch.autocast(self.teacher.model.device.type, enabled=False):
                require_isolation(self.teacher.model, self.teacher.here(batch))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:  # fmt: skip
        """The micro batch's part of the step's mean, times the number of processes, whose gradients are averaged."""
        outputs = self._compare(model, {**inputs, "use_cache": False})
        self.seen += torch.stack([outputs.kl, outputs.nll, outputs.tokens]).double()
        tokens = outputs.tokens if num_items_in_batch is None else num_items_in_batch
        loss = outputs.loss / torch.as_tensor(tokens).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _compare(self, model: nn.Module, inputs: dict[str, Any], **how: Any) -> DivergenceOutput:
        states = self.teacher.states(**{name: each for name, each in inputs.items() if name not in LABELS})
        found: DivergenceOutput = model(**inputs, teacher_states=states, teacher_head=self.teacher.head_VE, **how)
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            kl, nll, tokens = self.accelerator.reduce(self.seen).tolist()
            self.seen.zero_()
            logs |= {"kl": kl / max(1.0, tokens), "cross_entropy": nll / max(1.0, tokens)}
        super().log(logs, start_time)

    def log_held_out_loss(self) -> float | None:
        """Logs both measures of the held-out documents, each alone, and returns the KL; None where there are none."""
        if not len(self.held_out.rows):
            return None
        sums = torch.zeros(3, dtype=torch.float64, device=self.args.device)
        for batch in self.batches_of(self.held_out, self.args.per_device_train_batch_size):
            outputs = self._compare(self.model, batch, divergence=Divergence())
            sums += torch.stack([outputs.nll, outputs.kl, outputs.tokens]).double()
        nll, kl, tokens = sums.tolist()
        self.log({HELD_OUT: nll / tokens, HELD_OUT_KL: kl / tokens})
        return kl / tokens

    def figures(self) -> dict[str, float]:
        """As :meth:`DocumentTrainer.figures`; ``teacher_held_out_loss``, and ``gap_closed``: the share of the student's
        excess over it that is gone."""
        found = super().figures()
        if len(self.held_out.rows):
            found[TEACHER_LOSS] = goal = self.loss_of_teacher()
            first, last = found[f"{HELD_OUT}_first"], found[f"{HELD_OUT}_last"]
            if first > goal:
                found["gap_closed"] = (first - last) / (first - goal)
        return found

    def loss_of_teacher(self) -> float:
        """Its mean negative log-likelihood (nats) per trained token of the held-out documents."""
        total, tokens = 0.0, 0
        for batch in self.batches_of(self.held_out, self.args.per_device_train_batch_size):
            labels = next_labels(batch.pop("labels")).flatten()
            states = self.teacher.states(**batch).flatten(0, 1)
            total += float(linear_cross_entropy(states, self.teacher.head_VE, labels))
            tokens += int((labels != IGNORED).sum())
        return total / tokens
