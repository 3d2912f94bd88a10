"""What every trainer of this suite shares: arguments from a recipe's `Training` section, the learning-rate curve,
checkpoints that are complete or absent, and figures for the stage's log."""

import math
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft import PeftModel
from torch import nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config
from transformers.utils import SAFE_WEIGHTS_NAME

from nanoalign.common.errors import CheckpointError, ConfigError, StageError
from nanoalign.common.processes import shared
from nanoalign.common.stage import StageLog
from nanoalign.models.adapters import merge_adapter
from nanoalign.models.config import Training
from nanoalign.models.fp8 import require_fp8
from nanoalign.models.fp8_layers import use_fp8
from nanoalign.models.schedules import optimizer_steps, schedule_factor
from nanoalign.models.speed import configure_model

COMPLETE = "whole"
"""Name of the empty file that marks a checkpoint folder as completely written."""


def resolve_device(device: str) -> str:
    """``auto`` becomes ``cuda`` where there is one, else ``cpu``; ``cuda:1`` is the second. Of several processes on a
    machine each has a GPU of its own.

    Raises:
        ConfigError: the requested CUDA device does not exist, or the name is unknown.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:N, got {device!r}")
    if device.startswith("cuda") and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {device} is requested, but torch finds {torch.cuda.device_count()} CUDA devices")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def training_arguments(
    train: Training,
    folder: Path,
    samples: int,
    device: str,
    seed: int,
    cls: type[TrainingArguments] = TrainingArguments,
    ranks: int = 1,
    **more: Any,
) -> TrainingArguments:
    """The arguments of a Hugging Face or TRL trainer.

    Args:
        folder: where resumable checkpoints go, usually ``context.folder / "checkpoints"``.
        samples: sequences in the training set, over all devices.
        device: auto, cpu or cuda.
        cls: TRL's SFTConfig, DPOConfig, GRPOConfig, ...; ``more`` are its own fields, and override those set here.
        ranks: devices that share each sequence.

    Raises:
        ConfigError: the batch does not divide over devices and micro batches, steps and epochs contradict, or
            ``train.precision`` is fp8 and the device has none.
    """
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    if devices % ranks:
        raise ConfigError(f"pack.sequence_parallel: {ranks} does not divide the {devices} processes of the launch")
    groups = devices // ranks
    micro = train.micro_batch(groups)
    if train.batch_size % (micro * groups):
        by = "devices" if ranks == 1 else f"groups of {ranks} devices"
        raise ConfigError(
            f"train.batch_size: {train.batch_size} is not a multiple of {micro} (micro batch) x {groups} ({by})"
        )
    here = resolve_device(device)
    if train.precision == "fp8":
        require_fp8(torch.device(here))
    on_cpu = here == "cpu"
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": on_cpu,
        "seed": seed,
        "data_seed": seed,
        "max_steps": optimizer_steps(train, samples),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": train.batch_size // (micro * groups),
        "learning_rate": train.learning_rate,
        "weight_decay": train.weight_decay,
        "adam_beta1": train.betas[0],
        "adam_beta2": train.betas[1],
        "max_grad_norm": train.max_grad_norm,
        "bf16": train.dtype == "bfloat16",
        "gradient_checkpointing": train.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if train.gradient_checkpointing else None,
        "save_strategy": "steps",
        "save_steps": train.checkpoint_every,
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "non_padding",
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": not on_cpu,
        "disable_tqdm": True,
        "report_to": [],
    }
    arguments = cls(**{**settings, **more})
    # A process trains on one GPU; if it saw more, the Trainer would spread its batches over them (DataParallel).
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if on_cpu:  # several processes would have "cpu:0", onto which torch.load restores no optimizer
        vars(arguments)["_setup_devices"] = torch.device("cpu")
    return arguments


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps among the complete ones, or None.

    Incomplete ones are deleted: their files must not mix with what is written later under the same name. For the first
    process only.
    """
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).is_file():
            whole[int(path.name.removeprefix("checkpoint-"))] = path
        else:
            shutil.rmtree(path)
    return whole[max(whole)] if whole else None


class CompleteCheckpoints(TrainerCallback):
    """Marks a checkpoint as complete once every rank has written its part and all of it is on disk.

    No checkpoint is written after the last step: the stage saves the model right then, and the Trainer, resumed at its
    last step in the middle of an epoch, would train one step too many.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if state.global_step >= state.max_steps:
            control.should_save = False
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
            for file in folder.rglob("*"):
                if file.is_file():
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())
            (folder / COMPLETE).touch()


class MetricsCallback(TrainerCallback):
    """Sends what a trainer logs to the stage's log, with the tokens seen and tokens/s.

    A resumed stage logs the steps after its checkpoint again, so the last row of a step is the one that counts. A loss
    or gradient that is not finite raises StageError: continuing would be pointless.
    """

    def __init__(self, log: StageLog, **fixed: Any) -> None:
        """``fixed`` goes into every row, e.g. ``phase="round 1"``."""
        self.log, self.fixed = log, fixed
        self.seconds, self.tokens = 0.0, 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seconds, self.tokens = time.perf_counter(), int(state.num_input_tokens_seen)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "train_loss" in logs:
            return
        row = {name: value for name, value in logs.items() if isinstance(value, int | float)}
        for name in ("num_input_tokens_seen", "num_tokens", "train_runtime", "train_tokens_per_second"):
            row.pop(name, None)  # counted here; TRL's num_tokens takes a batch of packs for one pack
        now, tokens = time.perf_counter(), int(state.num_input_tokens_seen)
        if tokens > self.tokens:
            row |= {"tokens": tokens, "tokens_per_s": (tokens - self.tokens) / (now - self.seconds)}
            self.seconds, self.tokens = now, tokens
        self.log.metrics(state.global_step, state.max_steps, **self.fixed, **row)
        if wrong := [name for name in ("loss", "grad_norm") if not math.isfinite(row.get(name, 0.0))]:
            raise StageError(
                f"step {state.global_step}: {' and '.join(wrong)} not finite, so the weights are corrupt; the stage "
                "resumes from its last checkpoint when run again"
            )


class RecipeTrainer(Trainer):
    """Mixin before any HF or TRL trainer: ``class PackedSFT(RecipeTrainer, SFTTrainer)``.

    Learning rates come from :mod:`models.schedules`; norms, biases and Mamba's A, D and dt are not decayed; checkpoints
    are complete or absent; figures go to the stage's log.
    """

    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None
    fp8_in_eval = False
    """Whether `train.precision: fp8` is for eval mode too, where what it computes is compared with what is trained."""

    def __init__(self, *args: Any, train: Training, log: StageLog, phase: str | None = None, **kwargs: Any) -> None:
        if train.precision == "fp8":
            use_fp8(kwargs["model"] if "model" in kwargs else args[0], always=self.fp8_in_eval)
        super().__init__(*args, **kwargs)
        configure_model(self.model, train, self.args.device)
        self.recipe = train
        self.remove_callback(PrinterCallback)
        self.add_callback(CompleteCheckpoints())
        self.add_callback(MetricsCallback(log, **({} if phase is None else {"phase": phase})))

    def train_or_resume(self) -> None:
        """Trains from the newest complete checkpoint under ``args.output_dir``, or from the start.

        On CPU a training killed at any moment and resumed ends with the same weights, bitwise: the checkpoint holds
        weights, optimizer, schedule and RNG states, and the data order is a function of seed and epoch.
        """
        # the first process chooses for all: another may look before a checkpoint is marked complete
        found = newest_checkpoint(Path(self.args.output_dir or ".")) if self.accelerator.is_main_process else None
        checkpoint = shared(found)
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def full_model(self, build: Callable[[], PreTrainedModel | PeftModel]) -> PreTrainedModel | None:
        """The trained model with its full weights, adapters merged, on the first process; None on all others. The
        trainer's own model is consumed.

        ``build`` recreates the model where ZeRO-3 has split it: it takes the gathered weights, in host memory, and is
        given back in the precision that they were split in.
        """
        model, split = self.model, is_deepspeed_zero3_enabled()
        if split:
            state = self.accelerator.get_state_dict(self.model_wrapped)
            unset_hf_deepspeed_config()  # what is built from here on is not split
        if not self.is_world_process_zero():
            return None
        if split:
            model = build()
            model.load_state_dict(state)
        if isinstance(model, PeftModel):
            model = merge_adapter(model)
        return model.bfloat16() if split and self.args.bf16 else model

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: schedule_factor(self.recipe, step, num_training_steps)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card: checkpoints are for resuming only."""

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices decay; vectors do not: norms, biases, and Mamba's A, D and dt, which its authors exempt.

        ``ds_shape`` is the shape of a parameter that DeepSpeed has split over devices.
        """
        shapes = {name: getattr(weight, "ds_shape", weight.shape) for name, weight in model.named_parameters()}
        return [name for name, shape in shapes.items() if len(shape) >= 2]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Checkpoints keep the module's own names: save_pretrained writes the hub's (``backbone.`` for NemotronH's
        ``model.``), which the Trainer does not find again on resume."""
        if state_dict is not None or isinstance(self.model, PeftModel):
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_model(self.model, str(folder / SAFE_WEIGHTS_NAME))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """The Trainer only warns where a checkpoint lacks weights; training on would start from the wrong ones."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        missing = [name for name in load_result.missing_keys if name not in tied]
        if missing or load_result.unexpected_keys:
            raise CheckpointError(
                f"{self.args.output_dir}: the newest checkpoint does not fit the model: missing {missing[:5]}, "
                f"unexpected {load_result.unexpected_keys[:5]}; delete it to restart the stage"
            )
