"""A measurement on what is held out, in the middle of training, and the end of training once it improves no more."""

from collections.abc import Callable
from pathlib import Path

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nanoalign.common.processes import shared
from nanoalign.models.config import EarlyStop


class HeldOut(TrainerCallback):
    """Measures every ``every`` steps. With ``stop`` a step that improves the measure is checkpointed, that checkpoint
    is kept, and training ends after ``stop.patience`` measurements without improvement.

    All it remembers is in the trainer's state, and so in checkpoints: a resumed stage stops where it would have.
    """

    def __init__(
        self,
        measure: Callable[[], float | None],
        every: int,
        stop: EarlyStop | None,
        *,
        larger: bool,
        at_end: bool = False,
    ) -> None:
        """``measure`` is called on all processes and logs what it finds. ``larger``: the larger the better; else the
        smaller. ``at_end``: also after the last step; with ``stop`` it always is."""
        self.measure, self.every, self.stop = measure, every, stop
        self.sign, self.at_end = 1 if larger else -1, at_end

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.best_global_step:  # the run may have been moved since
            state.best_model_checkpoint = str(Path(args.output_dir or ".") / f"checkpoint-{state.best_global_step}")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        last = state.global_step >= state.max_steps
        if state.global_step % self.every and not (last and (self.stop or self.at_end)):
            return control
        found = shared(self.measure())  # one decision for all processes
        if self.stop is None or found is None:
            return control
        best = state.best_metric
        if best is None or self.sign * found > self.sign * best + self.stop.min_improvement:
            state.best_metric, state.best_global_step = found, state.global_step
            # at the last step the weights are there already, and nothing is checkpointed
            state.best_model_checkpoint = None if last else f"{args.output_dir}/checkpoint-{state.global_step}"
            control.should_save = not last
        elif (state.global_step - (state.best_global_step or 0)) >= self.stop.patience * self.every:
            # no checkpoint, as after the last step: a stage resumed there would train on
            control.should_training_stop, control.should_save = True, False
        return control


def restore_best(trainer: Trainer) -> None:
    """Gives the model the weights of the best measurement, where those are not its own already."""
    if trainer.state.best_model_checkpoint is not None:
        trainer._load_best_model()
