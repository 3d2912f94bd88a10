"""`kind: dpo`: iterative on-policy DPO in an environment.

A round: play every task several times with the current checkpoint, pair successes with failures where they part, train
on the pairs against that checkpoint, measure on held-out tasks. What a round found is kept in ``round-N``: its
episodes, its pairs, its model and, when all is done, ``round.json``; a resumed stage continues after the last of these.
"""

import gc
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from nanoalign.common.files import atomic_folder, write_json
from nanoalign.common.intervals import mean, proportion
from nanoalign.common.stage import StageContext
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.config import Mixture
from nanoalign.reward.base import Tally
from nanoalign.rl.collect import row_schedule
from nanoalign.rl.config import DPOStage
from nanoalign.rl.pairs import PreferencePair, pair_up
from nanoalign.rl.round_files import pair_of, read_lines, tally, write_lines
from nanoalign.rl.round_tasks import batches, differing
from nanoalign.rl.successes import WrittenTurn, successful_turns, turns_beside
from nanoalign.rollouts.base import Mode, RolloutEngine, Sampling, draw_mode, sampling
from nanoalign.rollouts.config import Rollouts
from nanoalign.rollouts.environments.base import Environment, Task
from nanoalign.rollouts.episodes import EpisodeRecord, play
from nanoalign.rollouts.seeds import derive_seed

HELD_OUT = 1_000_000
"""Takes the place of a round's number in the seeds of held-out episodes."""


def run(config: DPOStage, mixtures: Mapping[str, Mixture], context: StageContext) -> dict[str, Any]:
    """Trains round after round and writes ``context.folder/model``.

    Returns ``success_first`` and ``success_last`` on held-out tasks (greedy), both for every round (with
    ``held_out_samples`` also of sampled episodes, the interval over tasks), how many pairs each round found, with
    intervals and counts, and the share of weights that it changed as the engine has them, in ``train.dtype``: a step
    that bfloat16 rounds away is none that plays.
    """
    import torch

    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.models.loading import load_model, load_tokenizer, resolve, save_model
    from nanoalign.models.training import resolve_device
    from nanoalign.models.weights import changed_share
    from nanoalign.rollouts.environments import environment

    device = resolve_device(context.device)
    processes = PartialState(cpu=device == "cpu", timeout=timedelta(seconds=config.rollouts.longest_wait_s()))
    first = processes.is_main_process
    chat = chat_format(context.chat)
    tokenizer = load_tokenizer(context.inputs["from"])
    player = _Player(
        config, context, environment(config.environment, context.data_root), chat, tokenizer, processes, device
    )
    current = context.inputs["from"]
    rounds: list[dict[str, Any]] = []
    for number in range(config.rounds + 1):
        folder = context.folder / f"round-{number}"
        if not (folder / "round.json").is_file():
            outcome: dict[str, Any] = {"round": number}
            if number:
                if not (folder / "pairs.jsonl").is_file():
                    episodes, pairs = player.train_episodes(current, number)
                    if first:
                        write_lines(folder / "episodes.jsonl", episodes)
                        write_lines(folder / "pairs.jsonl", pairs)
                    processes.wait_for_everyone()
                rows = read_lines(folder / "episodes.jsonl")
                successes = [row["success"] for row in rows]
                outcome["ended"] = dict(Counter(row["ended"] for row in rows).most_common())
                outcome["answers"] = tally(rows).as_dict()
                faults: Counter[str] = Counter()
                for row in rows:
                    faults.update(row.get("faults", {}))
                if faults:
                    outcome["tool_faults"] = dict(faults.most_common())
                pairs = [pair_of(row) for row in read_lines(folder / "pairs.jsonl")]
                outcome["tasks"] = len({row["task"] for row in rows})
                outcome["sampled"] = proportion(sum(successes), len(successes)).as_dict()
                outcome["pairs"] = len(pairs)
                outcome["tasks_with_pairs"] = len({pair.task for pair in pairs})
                player.forget()
                if pairs:
                    turns = successful_turns(rows) if config.nll_weight and config.nll_on == "successes" else []
                    train_round(config, context, current, tokenizer, pairs, turns, folder, device, f"round {number}")
                    gc.collect()  # DeepSpeed's engine and its model refer to each other, and play needs their memory
                elif first:
                    save_model(load_model(current), tokenizer, folder / "model")
                processes.wait_for_everyone()
                outcome["changed"] = changed_share(
                    resolve(current), folder / "model", getattr(torch, config.train.dtype)
                )
            outcome |= player.held_out(folder / "model" if number else current)
            if first:
                write_json(folder / "round.json", outcome)
            processes.wait_for_everyone()
        rounds.append(json.loads((folder / "round.json").read_text(encoding="utf-8")))
        if number:
            current = folder / "model"
        if first:
            log_round(context, rounds[-1], config.rounds)
        if config.stop_when_flat and number and rounds[-1]["held_out"]["value"] <= rounds[-2]["held_out"]["value"]:
            break
    player.close()
    if first:
        with atomic_folder(context.folder / "model") as temporary:
            shutil.copytree(current, temporary, dirs_exist_ok=True)
    processes.wait_for_everyone()
    return {
        "success_first": rounds[0]["held_out"],
        "success_last": rounds[-1]["held_out"],
        "success_gain_points": 100 * (rounds[-1]["held_out"]["value"] - rounds[0]["held_out"]["value"]),
        "rounds": len(rounds) - 1,
        **{f"success_round_{each['round']}": each["held_out"] for each in rounds},
        **{
            f"success_sampled_round_{each['round']}": each["held_out_sampled"]
            for each in rounds
            if config.held_out_samples
        },
        **{f"sampled_round_{each['round']}": each["sampled"] for each in rounds[1:]},
        **{f"pairs_round_{each['round']}": each["pairs"] for each in rounds[1:]},
        **{f"changed_round_{each['round']}": each["changed"] for each in rounds[1:]},
        **{f"ended_round_{each['round']}": each["ended"] for each in rounds[1:]},
        **{f"tool_faults_round_{each['round']}": found for each in rounds if (found := each.get("tool_faults"))},
        "answers": Tally.from_dicts(each["answers"] for each in rounds[1:]).as_dict(),
    }


class _Player:
    """Plays training and held-out tasks with whatever model a round has come to."""

    def __init__(
        self, config: DPOStage, context: StageContext, environment: Environment, chat: ChatFormat, tokenizer: Any,
        processes: PartialState, device: str,
    ) -> None:  # fmt: skip
        self.config, self.context, self.environment, self.processes = config, context, environment, processes
        self.device = device
        self.chat, self.tokenizer = chat, tokenizer
        self.train_tasks = list(environment.tasks("train"))
        self.order = row_schedule(len(self.train_tasks), config.rounds * config.most_tasks, context.seed)
        test = list(environment.tasks("test"))
        chosen = row_schedule(len(test), min(config.held_out_tasks, len(test)), derive_seed(context.seed, HELD_OUT))
        self.test_tasks = [test[row] for row in chosen]
        self.each = config.rollouts.engine.kind != "vllm_server"
        """Each process has an engine of its own, on its own GPU."""
        self.vllm: RolloutEngine | None = None
        self.loaded: tuple[Path, Any] | None = None
        """The model that plays in this process, and where it is from."""

    def engine(self, model: Path) -> RolloutEngine | None:
        """An engine on a folder's weights; None on processes that leave asking servers to the first. vLLM is started
        once, on all processes together, and then given new weights."""
        from nanoalign.models.loading import load_model, resolve
        from nanoalign.models.weights import stored_weights
        from nanoalign.rollouts import open_engine

        settings: Rollouts = self.config.rollouts
        if settings.engine.kind == "hf":
            if self.loaded is None or self.loaded[0] != model:
                self.loaded = (model, load_model(model, device=self.device))
            return open_engine(
                "hf", self.loaded[1], self.tokenizer, self.chat, batch_size=settings.batch_size,
                dtype=self.config.train.dtype,
            )  # fmt: skip
        if not (self.each or self.processes.is_main_process):
            return None
        if self.vllm is None:
            self.vllm = open_engine(
                settings.engine, self.context.inputs["from"], self.tokenizer, self.chat,
                batch_size=settings.batch_size, dtype=self.config.train.dtype,
                exchange=self.context.folder / "exchange",
                budgets=any(budget is not None for budget in self.config.thinking.budgets),
            )  # fmt: skip
        self.vllm.load_weights(stored_weights(resolve(model)))
        return self.vllm

    def forget(self) -> None:
        """Makes room for training."""
        self.loaded = None

    def train_episodes(self, model: Path, number: int) -> tuple[list[EpisodeRecord], list[PreferencePair]]:
        """A round's episodes and their pairs, the same on every process."""
        config, episodes, pairs = self.config, list[EpisodeRecord](), list[PreferencePair]()
        new = self.order[(number - 1) * config.most_tasks : number * config.most_tasks]
        played = 0
        for batch in batches(new, self._again(number), config.tasks_per_round):
            tasks = [self.train_tasks[row] for row in batch]
            episodes += self._play(model, tasks, config.samples_per_task, number, config.rollouts, played)
            played += len(tasks)
            seed = derive_seed(self.context.seed, number)
            pairs = pair_up(episodes, config.pairs_per_task, config.pairing, seed, config.partial_credit)
            if len(pairs) >= (config.min_pairs or 0):
                break
        return episodes, pairs

    def _again(self, number: int) -> list[int]:
        """The tasks of the round before that are played once more."""
        most = int(self.config.revisit * self.config.tasks_per_round)
        if number == 1 or not most:
            return []
        rows = {task.id: row for row, task in enumerate(self.train_tasks)}
        before = read_lines(self.context.folder / f"round-{number - 1}" / "episodes.jsonl")
        return [rows[task] for task in differing(before)][:most]

    def held_out(self, model: Path) -> dict[str, Any]:
        """Success on held-out tasks, and of each task, in the order of tasks."""
        config = self.config
        greedy = self._solved(model, 1, config.rollouts.model_copy(update={"temperature": 0.0}))
        found: dict[str, Any] = {"held_out": proportion(sum(map(round, greedy)), len(greedy)).as_dict(),
                                 "held_out_by_task": greedy}  # fmt: skip
        if config.held_out_samples:
            sampled = self._solved(model, config.held_out_samples, config.rollouts)
            found |= {"held_out_sampled": mean(sampled).as_dict(), "held_out_sampled_by_task": sampled}
        return found

    def _solved(self, model: Path, samples: int, rollouts: Rollouts) -> list[float]:
        """The share of each held-out task's episodes that succeeded; the same draws in every round."""
        episodes = self._play(model, self.test_tasks, samples, HELD_OUT, rollouts)
        won = [float(each.success) for each in episodes]
        return [sum(won[start : start + samples]) / samples for start in range(0, len(won), samples)]

    def _play(
        self, model: Path, tasks: Sequence[Task], samples: int, number: int, rollouts: Rollouts, before: int = 0
    ) -> list[EpisodeRecord]:
        """On every process the episodes of all: each plays its share of the tasks where each has an engine of its own,
        the first plays all where servers are asked. ``before``: tasks of the round that were played already."""
        seed, rank = self.context.seed, self.processes.process_index
        places = range(before, before + len(tasks))
        modes = [draw_mode(self.config.thinking, derive_seed(seed, number, place)) for place in places]
        if self.each:
            bounds = [len(tasks) * part // self.processes.num_processes for part in (rank, rank + 1)]
        else:
            bounds = [0, 0 if rank else len(tasks)]
        mine = range(*bounds)

        def settings(place: int, sample: int, turn: int) -> tuple[Mode, Sampling]:
            task = mine[place]
            return modes[task], sampling(rollouts, modes[task], derive_seed(seed, number, before + task, sample, turn))

        episodes: list[EpisodeRecord] = []
        engine = self.engine(model)  # of all processes, also those with no task: they start together
        if engine is not None:
            if mine:
                own = [tasks[task] for task in mine]
                episodes = play(
                    engine, self.environment, own, samples, settings, self.chat, self.tokenizer, self.config.max_turns
                )
            engine.sleep()
        return gather_object(episodes)

    def close(self) -> None:
        if self.vllm is not None:
            self.vllm.close()


def train_round(
    config: DPOStage, context: StageContext, source: Path, tokenizer: Any, pairs: Sequence[PreferencePair],
    turns: Sequence[WrittenTurn], folder: Path, device: str, phase: str,
) -> None:  # fmt: skip
    """One round's training of the model in ``source``, from the round's newest checkpoint; writes ``folder/model``.
    ``turns``, if any, are those on which the negative log-likelihood is taken."""
    from nanoalign.models.adapters import load_trainable
    from nanoalign.models.loading import save_model
    from nanoalign.rl.dpo_trainer import dpo_arguments, make_trainer

    of_chosen = 0.0 if turns else config.nll_weight
    arguments = dpo_arguments(
        config.train, len(pairs), config.beta, folder / "checkpoints", device, context.seed, of_chosen
    )
    beside = turns_beside(turns, len(pairs), config.nll_turns, context.seed)
    fresh_model = partial(load_trainable, source, config.train.lora, context.seed)
    trainer = make_trainer(
        fresh_model(device), tokenizer, pairs, arguments, config.train, context.log, phase, beside, config.nll_weight
    )
    trainer.train_or_resume()
    if (trained := trainer.full_model(fresh_model)) is not None:
        save_model(trained, tokenizer, folder / "model")
    if trainer.is_deepspeed_enabled:
        trainer.model_wrapped.destroy()


def log_round(context: StageContext, outcome: Mapping[str, Any], rounds: int) -> None:
    values: dict[str, Any] = {"phase": "rounds", "held_out_success": outcome["held_out"]["value"]}
    if "sampled" in outcome:
        values |= {name: outcome[name] for name in ("pairs", "changed")}
        values["sampled_success"] = outcome["sampled"]["value"]
    if "held_out_sampled" in outcome:
        values["held_out_sampled_success"] = outcome["held_out_sampled"]["value"]
    context.log.metrics(outcome["round"], rounds, **values)
