"""Trains DPO and a reward model on pairs that do not fill the last batch, on one process and on several:
python pairs_worker.py BASE FOLDER"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import torch

from nanoalign.common.stage import StageLog
from nanoalign.models.config import Training
from nanoalign.models.loading import load_model, load_tokenizer
from nanoalign.models.scorer import load_scorer
from nanoalign.rl import dpo_trainer, reward_trainer
from nanoalign.rl.pairs import PreferencePair
from nanoalign.rollouts.base import Completion
from tests.ranks import on_ranks

WAYS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "dpo-micro": {"micro": 2},
    "dpo-few": {"pairs": 5},
    "dpo-killed": {"kill": 3},
    "reward": {},
}
RANKS = (1, 2, 3)


def tokens(draw: torch.Generator, least: int) -> list[int]:
    length = int(torch.randint(least, least + 5, (), generator=draw))
    return torch.randint(5, 200, (length,), generator=draw).tolist()


def make_trainer(way: str, base: Path, folder: Path, pairs: int = 19, micro: int | None = None, kill: int = 0) -> Any:
    """Of two epochs, each of a batch of 12 pairs and one of 7 unless there are fewer."""
    train = Training(
        learning_rate=1e-3, batch_size=12, micro_batch_size=micro, epochs=2, dtype="float32",
        checkpoint_every=1 if kill else 100,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    rows = [[tokens(draw, least) for least in (2, 1, 1)] for _ in range(pairs)]
    tokenizer, places = load_tokenizer(base), (folder / "checkpoints", StageLog(folder), "cpu", 3)
    torch.manual_seed(0)
    if way.startswith("reward"):
        scorer = load_scorer(base, tokenizer.pad_token_id, "cpu", fresh_head=True)
        return reward_trainer.make_trainer(
            scorer, tokenizer, [(prompt + one, prompt + other) for prompt, one, other in rows], train, *places
        )
    played = [
        PreferencePair(f"task-{number}", 0, tuple(prompt), *(answer(ids) for ids in answers))
        for number, (prompt, *answers) in enumerate(rows)
    ]
    arguments = dpo_trainer.dpo_arguments(train, len(played), 0.5, places[0], *places[2:])
    return dpo_trainer.make_trainer(load_model(base), tokenizer, played, arguments, train, places[1], "round 1")


def answer(ids: list[int]) -> Completion:
    return Completion(tuple(ids), (0.0,) * len(ids), (False,) * len(ids), "stop")


def main() -> None:
    torch.set_num_threads(1)
    base, folder = Path(sys.argv[1]), Path(sys.argv[2])

    def work(rank: int) -> None:
        for way, settings in WAYS.items():
            place = folder / f"{way}-{os.environ.get('WORLD_SIZE', '1')}"
            trainer = make_trainer(way, base, place, **settings)
            if settings.get("kill"):
                step = trainer.training_step

                def dies(*args: Any, trainer: Any = trainer, step: Any = step, at: int = settings["kill"]) -> Any:
                    if trainer.state.global_step == at:
                        raise KeyboardInterrupt
                    return step(*args)

                trainer.training_step = dies
                with contextlib.suppress(KeyboardInterrupt):
                    trainer.train_or_resume()
                trainer = make_trainer(way, base, place, **settings)
            trainer.train_or_resume()
            if rank == 0:
                log = [row for row in trainer.state.log_history if "loss" in row]
                end = {"weights": trainer.model.state_dict(), "log": log, "tokens": trainer.state.num_input_tokens_seen}
                torch.save(end, place / "end.pt")

    for ranks in RANKS:
        if not on_ranks(ranks, work):
            sys.exit(f"{ranks} failed")


if __name__ == "__main__":
    main()
