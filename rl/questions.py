"""What a GRPO stage asks: the prompts or tasks that it trains on, and those that it is measured on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from nanoalign.common.errors import DataError
from nanoalign.common.stage import StageContext
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.selection import build
from nanoalign.models.config import HELD_OUT, HELD_OUT_SHARE
from nanoalign.rl.collect import Prompt, prompts_of
from nanoalign.rl.config import GRPOStage
from nanoalign.rl.episodes import prompts_of_tasks
from nanoalign.rollouts.environments.base import Environment, Task


@dataclass(frozen=True)
class Questions:
    """Prompts; in an environment, ``tasks`` and ``held_out_tasks`` in the same order."""

    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt] = ()
    """None where the stage is not measured while it trains."""
    environment: Environment | None = None
    tasks: Sequence[Task] = ()
    held_out_tasks: Sequence[Task] = ()
    report: Mapping[str, Any] = field(default_factory=dict)
    """What was dropped of the data, and why."""


def questions(
    config: GRPOStage, mixtures: Mapping[str, Mixture], context: StageContext, chat: ChatFormat, tokenizer: Any
) -> Questions:
    """Raises DataError: bad rows, or nothing to train or to measure on."""
    measured, seed = config.train.evaluate_every is not None, context.seed
    if config.environment is not None:
        from nanoalign.rollouts.environments import environment

        played = environment(config.environment, context.data_root)
        tasks, test = list(played.tasks("train")), list(played.tasks("test")) if measured else []
        if measured and not test:
            raise DataError("train.evaluate_every: the environment has no test tasks to measure on")
        count = config.held_out if isinstance(config.held_out, int) else HELD_OUT
        chosen = Random(f"{seed}/held out").sample(test, min(count, len(test)))
        ask = partial(prompts_of_tasks, thinking=config.thinking, chat=chat, tokenizer=tokenizer, seed=seed)
        return Questions(ask(tasks), ask(chosen), played, tasks, chosen)
    asked = partial(prompts_of, thinking=config.thinking, chat=chat, tokenizer=tokenizer, seed=seed)
    built = build(mixtures[str(config.data)], context.data_root, seed, chat=chat)
    prompts, held_out, wanted = asked(built.conversations), list[Prompt](), config.held_out
    if measured and isinstance(wanted, str):
        held_out = asked(build(mixtures[wanted], context.data_root, seed, chat=chat).conversations)
    elif measured and not isinstance(wanted, str):
        prompts, held_out = hold_out(prompts, wanted, seed)
    return Questions(
        prompts, held_out, report={"dropped": dict(built.report.dropped), "not_read": dict(built.report.not_read)}
    )


def hold_out(prompts: Sequence[Prompt], count: int | None, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """What is left to train on, and ``count`` prompts (None: one of 50, 64 at most). Every further copy of one that is
    held out leaves training too.

    Raises:
        DataError: nothing is left on one of the sides.
    """
    wanted = min(HELD_OUT, len(prompts) // HELD_OUT_SHARE) if count is None else count
    if not wanted:
        raise DataError(
            f"train.evaluate_every: none of {len(prompts)} prompts is held out (one of {HELD_OUT_SHARE} would be); say "
            "how many with held_out, or name a mixture there"
        )
    copies: dict[tuple[str, ...], list[int]] = {}
    for place, prompt in enumerate(prompts):
        copies.setdefault(tuple(message.content for message in prompt.messages), []).append(place)
    if wanted >= len(copies):
        raise DataError(f"held_out: {wanted} of {len(copies)} different prompts would leave none to train on")
    chosen = Random(f"{seed}/held out").sample(list(copies.values()), wanted)
    gone = {place for places in chosen for place in places}
    return [each for place, each in enumerate(prompts) if place not in gone], [prompts[places[0]] for places in chosen]
