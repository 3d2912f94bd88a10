"""Runs one SFT stage on 1 and then on 2 gloo ranks of this machine: python ranks_worker.py BASE FOLDER PORT."""

import os
import sys
from pathlib import Path

import torch

import sft.trainer  # noqa: F401  (imported once, before the forks)
from common.stage import StageContext, StageLog
from data_recipes.config import Mixture
from sft.config import SFTStage
from sft.stage import run

MIXTURES = {"all": Mixture.model_validate({"sources": {"miniature:math": 100}})}


def stage(folder: Path, base: Path) -> None:
    train = {"learning_rate": 1e-3, "batch_size": 4, "micro_batch_size": 2, "dtype": "float32", "steps": 3}
    config = SFTStage.model_validate(
        {"kind": "sft", "from": "base", "data": "all", "pack": {"length": 256}, "train": train}
    )
    context = StageContext(
        name="first", folder=folder, inputs={"from": base}, chat="nemotron-nano-v2", seed=3, data_root=None,
        device="cpu", log=StageLog(folder),
    )  # fmt: skip
    run(config, MIXTURES, context)


def main() -> None:
    torch.set_num_threads(1)
    base, folder, port = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    for ranks in (1, 2):
        children = []
        for rank in range(ranks):
            pid = os.fork()
            if pid == 0:
                if ranks > 1:
                    os.environ |= {
                        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                        "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                    }  # fmt: skip
                stage(folder / str(ranks), base)
                if ranks > 1:
                    torch.distributed.destroy_process_group()
                os._exit(0)
            children.append(pid)
        if any(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children):
            sys.exit(1)


if __name__ == "__main__":
    main()
