"""Trains a tiny hybrid in processes that may kill themselves: python training_worker.py FOLDER:MOMENT:MODEL ...

MOMENT: never; step (in optimizer step 9); save (in the middle of writing a checkpoint). MODEL: full, lora or fp8.
Each writes FOLDER/weights.safetensors at its end; its exit status is printed, negative where a signal ended it.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from nanoalign.common.stage import StageLog
from nanoalign.models.adapters import attach, merge_adapter
from nanoalign.models.config import LoRA, Training
from nanoalign.models.training import RecipeTrainer, training_arguments
from tests.tiny import tiny_hybrid


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Mortal(RecipeTrainer):
    moment = "never"

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.moment == "step" and self.state.global_step == 8:
            kill()
        return super().training_step(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        if self.moment == "save" and self.state.global_step == 6:
            kill()
        super()._save_rng_state(output_dir)


def rows(count: int) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(0, 64, (count, 16), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in tokens]


def train(folder: Path, moment: str, kind: str) -> None:
    model, adapters = tiny_hybrid(), kind == "lora"
    if adapters:
        model = attach(model, LoRA(rank=4, dropout=0.3), seed=1)
    recipe = Training(
        learning_rate=1e-2, batch_size=4, micro_batch_size=2, epochs=3, checkpoint_every=3,
        dtype="bfloat16" if kind == "fp8" else "float32", precision="fp8" if kind == "fp8" else None,
    )  # fmt: skip
    arguments = training_arguments(recipe, folder / "checkpoints", samples=18, device="cpu", seed=5)
    trainer = Mortal(model, arguments, train_dataset=rows(18), train=recipe, log=StageLog(folder))
    trainer.moment = moment
    trainer.train_or_resume()
    safetensors.torch.save_model(merge_adapter(model) if adapters else model, str(folder / "weights.safetensors"))


def main() -> None:
    torch.set_num_threads(1)
    for folder, moment, model in (job.split(":") for job in sys.argv[1:]):
        pid = os.fork()  # importing takes far longer than training
        if pid == 0:
            train(Path(folder), moment, model)
            os._exit(0)
        print("status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
