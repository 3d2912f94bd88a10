"""Trains GRPO in an environment of the tests, on one gloo process and on two: python episodes_worker.py BASE FOLDER"""

import json
import os
import sys
from pathlib import Path

import torch

from nanoalign import rollouts
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.rl import grpo
from tests.ranks import on_ranks
from tests.rl.test_rl_dpo import EvenEnvironment
from tests.rl.test_rl_episodes import config

WAYS = {
    "padded": {"train": {"micro_batch_size": 2}},
    "packed": {"pack_tokens": 700, "held_out": 3, "train": {"evaluate_every": 1}},
}


def play_and_train(base: Path, folder: Path, way: str) -> None:
    rollouts.environments.environment = lambda name, data_root: EvenEnvironment()
    rows = []
    collect = grpo.OwnEngine.__call__

    def counted(self, *part):
        collected = collect(self, *part)
        rows.append(len(collected.prompt_ids))
        return collected

    grpo.OwnEngine.__call__ = counted
    context = StageContext("even", folder, {"from": base}, "nemotron-nano-v2", 5, None, "cpu", log=StageLog(folder))
    grpo.run(config(2, **WAYS[way]), {}, context)
    (folder / f"rows.{os.environ.get('RANK', '0')}.json").write_text(json.dumps(rows))


def main() -> None:
    torch.set_num_threads(1)
    base, folder = Path(sys.argv[1]), Path(sys.argv[2])
    for way in WAYS:
        for ranks in (1, 2):

            def work(rank: int, way: str = way, ranks: int = ranks) -> None:
                play_and_train(base, folder / f"{way}_{ranks}", way)

            if not on_ranks(ranks, work):
                sys.exit(f"{way} on {ranks} failed")


if __name__ == "__main__":
    main()
