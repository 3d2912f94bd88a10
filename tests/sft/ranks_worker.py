"""Runs one SFT stage, or a distillation, in several ways, on gloo ranks of this machine:
python ranks_worker.py BASE FOLDER WAY ..."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import deepspeed.ops
import torch

import nanoalign.sft.trainer  # noqa: F401  (imported once, before the forks)
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.config import Mixture
from nanoalign.launch import deepspeed_environment
from nanoalign.sft.config import DistillStage, SFTStage
from nanoalign.sft.distill import run as run_distill
from nanoalign.sft.stage import run
from tests.ranks import on_ranks

MIXTURES = {"all": Mixture.model_validate({"sources": {"miniature:math": 100}})}
FP8 = {"dtype": "bfloat16", "precision": "fp8", "gradient_checkpointing": True, "tile": 32}
WAYS: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "one": (1, 0, 1, {}),
    "data": (2, 0, 1, {}),
    "sequence": (2, 0, 2, {}),
    "zero3": (2, 3, 1, {}),
    "zero3_sequence": (2, 3, 2, {"gradient_checkpointing": True}),
    "lora": (1, 0, 1, {"lora": {"rank": 4}}),
    "lora_sequence": (2, 0, 2, {"lora": {"rank": 4}}),
    "lora_zero3": (2, 3, 1, {"lora": {"rank": 4}}),
    "all": (2, 3, 2, {"dtype": "bfloat16", "lora": {"rank": 4}}),
    "fp8": (1, 0, 1, FP8),
    "fp8_zero3_sequence": (2, 3, 2, FP8),
    "mixed": (4, 0, 2, {}),
    "distil": (1, 0, 1, {}),
    "distil_data": (2, 0, 1, {}),
    "distil_zero3_sequence": (2, 3, 2, {"gradient_checkpointing": True}),
}
"""Processes, ZeRO stage, processes that share a pack, further settings."""


def stage(folder: Path, base: Path, sequence_parallel: int, more: dict[str, Any]) -> None:
    """Its name says what it does; a teacher is beside the base."""
    train = {"learning_rate": 1e-3, "batch_size": 4, "micro_batch_size": 2, "dtype": "float32", "steps": 3, **more}
    pack = {"length": 256, "sequence_parallel": sequence_parallel}
    section = {"from": "base", "data": "all", "pack": pack, "train": train}
    context = StageContext(
        name="first", folder=folder, inputs={"from": base, "teacher": base.with_name("teacher")},
        chat="nemotron-nano-v2", seed=3, data_root=None, device="cpu", log=StageLog(folder),
    )  # fmt: skip
    if folder.name.startswith("distil"):
        # in two phases: ZeRO-3 splits a second student, while the teacher stays whole
        phases = [{"length": 128, "steps": 2, "batch_size": 8}, {"length": 256, "steps": 2}]
        section |= {"kind": "distill", "teacher": "expert", "phases": phases, "temperature": 2.0, "cross_entropy": 0.2}
        section |= {"pack": pack | {"over_long": "drop"}, "train": train | {"steps": None}}
        run_distill(DistillStage.model_validate(section), MIXTURES, context)
    else:
        run(SFTStage.model_validate({"kind": "sft", **section}), MIXTURES, context)


def split_everything(environment: dict[str, str], rank: int) -> dict[str, str]:
    """ZeRO-3 leaves parameters below a hundred thousand elements whole; here all are."""
    file = Path(environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"])
    settings = json.loads(file.read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    own = file.with_suffix(f".{rank}.json")
    own.write_text(json.dumps(settings))
    return environment | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(own)}


def main() -> None:
    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles collectives for two minutes
    base, folder = Path(sys.argv[1]), Path(sys.argv[2])
    for way in sys.argv[3:]:
        ranks, zero, sequence_parallel, more = WAYS[way]

        def work(rank: int, way: str = way, zero: int = zero, share: int = sequence_parallel, more: Any = more) -> None:
            if zero:
                os.environ |= split_everything(deepspeed_environment(zero, folder / f"{way}.json"), rank)
            stage(folder / way, base, share, more)

        if not on_ranks(ranks, work):
            sys.exit(f"{way} failed")


if __name__ == "__main__":
    main()
