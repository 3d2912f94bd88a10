"""Episodes that overlap in the engine, beside the same episodes turn by turn, on one vLLM server.

    python -m benchmarks.episodes MODEL --json FILE [--latency 0.5] [--environment miniature-workplace]

Both sides ask the same pool for the same tasks and seeds. Overlapped, each episode goes on when its own turn is
complete; turn by turn, a turn of all episodes is one batch, and all wait for the slowest. ``--latency`` is the mean
time of a tool's answer (exponential, seeded by task and turn), as of tools behind a network; 0 leaves the simulator as
it is. Sides alternate; figures are medians over ``--rounds`` after one that warms up. Speed is tokens that the model
wrote per second: sampled episodes differ between sides where batches round differently.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.conversation import Answer, Message
from nanoalign.models.loading import load_tokenizer
from nanoalign.rollouts import open_engine
from nanoalign.rollouts.base import Mode, Sampling
from nanoalign.rollouts.engines import ServerSettings
from nanoalign.rollouts.environments import environment
from nanoalign.rollouts.environments.base import Environment, Episode, Task
from nanoalign.rollouts.episodes import play
from nanoalign.rollouts.seeds import derive_seed


class InStep:
    """A pool without ``submit``: asked for a turn of all episodes at a time."""

    def __init__(self, pool: Any) -> None:
        self.generate, self.max_length = pool.generate, pool.max_length


class Slow:
    """An environment whose tools take time; a turn of many episodes asks them at once, as their own code would."""

    def __init__(self, inner: Environment, latency: float) -> None:
        self.inner, self.latency, self.name = inner, latency, inner.name
        self.threads = ThreadPoolExecutor(512)

    def tasks(self, split: str) -> Sequence[Task]:
        return self.inner.tasks(split)

    def start(self, task: Task) -> Episode:
        episode = self.inner.start(task)
        step, draw = episode.step, random.Random(task.id)

        def slow(answer: Answer) -> Sequence[Message]:
            if self.latency and answer.tool_calls:
                time.sleep(draw.expovariate(1 / self.latency))
            return step(answer)

        episode.step = slow  # type: ignore[method-assign]
        return episode

    def step_all(self, episodes: Sequence[Episode], answers: Sequence[Answer]) -> list[Sequence[Message]]:
        return list(self.threads.map(lambda pair: pair[0].step(pair[1]), zip(episodes, answers, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--chat", default="nemotron-nano-v2")
    parser.add_argument("--environment", default="miniature-workplace")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256, help="longest turn")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--latency", type=float, default=0.0, help="mean seconds of a turn's tools")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu", type=int, help="the server's; none: a CPU")
    parser.add_argument("--folder", type=Path, help="for the server's log")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tokenizer, chat = load_tokenizer(options.model), chat_format(options.chat)
    played = Slow(environment(options.environment, options.data_root), options.latency)
    tasks = list(played.tasks("train"))[: options.tasks]
    settings = ServerSettings(gpus=None if options.gpu is None else [options.gpu], gpu_memory=0.85)
    pool = open_engine(settings, options.model, tokenizer, chat, batch_size=256, budgets=False, dtype="bfloat16",
                       exchange=options.folder)  # fmt: skip
    found: dict[str, list[float]] = {"overlapped": [], "in_step": []}
    try:
        for number in range(options.rounds + 1):

            def sampling(task: int, sample: int, turn: int, number: int = number) -> tuple[Mode, Sampling]:
                seed = derive_seed(number, task, sample, turn)
                return Mode(False), Sampling(options.tokens, temperature=1.0, seed=seed)

            for side, engine in (("overlapped", pool), ("in_step", InStep(pool))):
                started = time.perf_counter()
                records = play(engine, played, tasks, options.samples, sampling, chat, tokenizer, options.turns)  # type: ignore[arg-type]
                seconds = time.perf_counter() - started
                tokens = sum(record.tokens for record in records)
                turns = sum(len(record.turns) for record in records)
                print(f"{side:<11} {seconds:7.2f} s  {tokens:7d} tokens  {turns:5d} turns", flush=True)
                if number:
                    found[side].append(tokens / seconds)
            if number:  # what there is when a time limit comes counts
                note(options, found)
    finally:
        pool.close()
    print(json.dumps(note(options, found)))


def note(options: argparse.Namespace, found: dict[str, list[float]]) -> dict[str, float]:
    """The figures of the rounds so far, written to ``--json``."""
    figures = {f"episodes.{side}.tokens_per_s": statistics.median(speeds) for side, speeds in found.items()}
    both = zip(found["overlapped"], found["in_step"], strict=True)
    figures["episodes_ratio_vs_lockstep"] = statistics.median(ours / theirs for ours, theirs in both)
    if options.json:
        told = {"command": vars(options), "figures": figures, "rounds": found}
        options.json.write_text(json.dumps(told, default=str, indent=1) + "\n")
    return figures


if __name__ == "__main__":
    main()
