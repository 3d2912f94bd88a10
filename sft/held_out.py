"""The held-out loss while a stage trains, and the end of training once it falls no more."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nanoalign.common.processes import shared
from nanoalign.sft.config import EarlyStop

if TYPE_CHECKING:
    from nanoalign.sft.trainer import DocumentTrainer


class HeldOutLoss(TrainerCallback):
    """Logs the loss on the held-out documents every ``every`` steps. With ``stop`` a step that improves it is
    checkpointed, that checkpoint is kept, and training ends after ``stop.patience`` measurements without improvement.

    All it remembers is in the trainer's state, and so in checkpoints: a resumed stage stops where it would have.
    """

    def __init__(self, trainer: "DocumentTrainer", every: int, stop: EarlyStop | None) -> None:
        self.trainer, self.every, self.stop = trainer, every, stop

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.best_global_step:  # the run may have been moved since
            state.best_model_checkpoint = str(Path(args.output_dir or ".") / f"checkpoint-{state.best_global_step}")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        last = state.global_step >= state.max_steps
        if state.global_step % self.every and not (last and self.stop):
            return control
        loss = shared(self.trainer.log_held_out_loss())  # one decision for all processes
        if self.stop is None:
            return control
        if state.best_metric is None or loss < state.best_metric - self.stop.min_improvement:
            state.best_metric, state.best_global_step = loss, state.global_step
            # at the last step the weights are there already, and nothing is checkpointed
            state.best_model_checkpoint = None if last else f"{args.output_dir}/checkpoint-{state.global_step}"
            control.should_save = not last
        elif (state.global_step - (state.best_global_step or 0)) >= self.stop.patience * self.every:
            control.should_training_stop = True
        return control


def restore_best(trainer: "DocumentTrainer") -> None:
    """Gives the model the weights of the best measurement, where those are not its own already."""
    if trainer.state.best_model_checkpoint is not None:
        trainer._load_best_model()
