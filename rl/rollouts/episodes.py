"""Episodes in an environment: many at once, turn by turn, so that every turn is one batch for the engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from data_recipes.chat.base import ChatFormat
from data_recipes.conversation import Message
from rl.environments.base import Environment, Episode, Task
from rl.modes import Mode
from rl.rollouts.base import Completion, Request, RolloutEngine, Sampling
from rl.rollouts.samples import completion_text


@dataclass(frozen=True)
class Turn:
    """One assistant turn: what the model was given and what it wrote, as token ids and read as a message."""

    prompt_ids: tuple[int, ...]
    completion: Completion
    message: Message


@dataclass(frozen=True)
class EpisodeRecord:
    """A played episode."""

    task: Task
    sample: int
    """Number among the task's episodes."""
    mode: Mode
    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]
    """Prompt, answers and tool results, in order."""
    success: bool
    ended: str
    """done: the model ended it; length: a turn was cut; turns: max_turns were up."""

    @property
    def tokens(self) -> int:
        """Tokens that the model wrote."""
        return sum(len(turn.completion.token_ids) for turn in self.turns)


@dataclass
class _Play:
    task: Task
    sample: int
    mode: Mode
    episode: Episode
    turns: list[Turn]
    ended: str = ""


def play(
    engine: RolloutEngine,
    environment: Environment,
    tasks: Sequence[Task],
    samples_per_task: int,
    sampling: Callable[[int, int, int], tuple[Mode, Sampling]],
    chat: ChatFormat,
    tokenizer: Any,
    max_turns: int,
) -> list[EpisodeRecord]:
    """Plays ``samples_per_task`` episodes of every task; records in order of tasks, then samples.

    Args:
        sampling: (task's number, sample, turn) to the mode and the settings of that turn's completion; the mode must
            not depend on the turn.
        max_turns: assistant turns after which an episode is over. An episode that does not end itself, or whose turn
            is cut by max_tokens, is no success: a cut message's calls are not run.
    """
    plays = [
        _Play(task, sample, sampling(number, sample, 0)[0], environment.start(task), [])
        for number, task in enumerate(tasks)
        for sample in range(samples_per_task)
    ]
    for turn in range(max_turns):
        live = [(place, each) for place, each in enumerate(plays) if not each.ended]
        if not live:
            break
        requests = []
        for place, each in live:
            text = chat.prompt(each.episode.messages, each.task.tools, thinking=each.mode.thinking)
            prompt_ids = tuple(tokenizer.encode(text, add_special_tokens=False))
            requests.append(Request(prompt_ids, sampling(place // samples_per_task, each.sample, turn)[1]))
        for (_, each), request, completion in zip(live, requests, engine.generate(requests), strict=True):
            _advance(each, request, completion, chat, tokenizer)
    return [_record(each) for each in plays]


def _advance(each: _Play, request: Request, completion: Completion, chat: ChatFormat, tokenizer: Any) -> None:
    message = chat.parse(completion_text(completion, tokenizer), thinking=each.mode.thinking)
    each.turns.append(Turn(request.prompt_ids, completion, message))
    if completion.finish != "stop":
        each.episode.messages.append(message)
        each.ended = "length"
    elif not each.episode.step(message):
        each.ended = "done"


def _record(each: _Play) -> EpisodeRecord:
    return EpisodeRecord(
        each.task, each.sample, each.mode, tuple(each.turns), tuple(each.episode.messages), each.episode.success(),
        each.ended or "turns",
    )  # fmt: skip
