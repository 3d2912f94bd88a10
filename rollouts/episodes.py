"""Episodes in an environment: many at once, turn by turn, so that every turn is one batch for the engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.data_recipes.chat.answers import SPECIAL_TOKEN, as_message, in_plain_text
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.conversation import Answer, Message
from nanoalign.rollouts.base import Completion, Mode, Request, RolloutEngine, Sampling
from nanoalign.rollouts.environments.base import Environment, Episode, Task
from nanoalign.rollouts.samples import never_empty, read_answer


@dataclass(frozen=True)
class Turn:
    """One assistant turn: what the model was given and what it wrote, as token ids and as read."""

    prompt_ids: tuple[int, ...]
    completion: Completion
    answer: Answer


@dataclass(frozen=True)
class EpisodeRecord:
    """A finished episode."""

    task: Task
    sample: int
    """Number among the task's episodes."""
    mode: Mode
    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]
    """Prompt, answers and tool results, in order."""
    success: bool
    ended: str
    """done: the model ended it; length: a turn was cut; malformed: a turn held a special token, and its calls were not
    run; room: the conversation so far leaves the engine no room for another turn; turns: max_turns was reached."""

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
    messages: list[Message]
    turns: list[Turn] = field(default_factory=list)
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
            is cut by max_tokens or malformed, is not a success: such a turn's calls are not run.

    Raises:
        ConfigError: a task's own prompt leaves the engine no room for an answer.
    """
    stop_id = tokenizer.convert_tokens_to_ids(chat.stop[0])
    plays = [
        _Play(task, sample, sampling(number, sample, 0)[0], environment.start(task), list(task.prompt))
        for number, task in enumerate(tasks)
        for sample in range(samples_per_task)
    ]
    for turn in range(max_turns):
        live = [(place, each) for place, each in enumerate(plays) if not each.ended]
        if not live:
            break
        asked, requests = [], []
        for place, each in live:
            text = chat.prompt(each.messages, each.task.tools, thinking=each.mode.thinking)
            prompt_ids = tuple(tokenizer.encode(text, add_special_tokens=False))
            settings = sampling(place // samples_per_task, each.sample, turn)[1]
            if engine.max_length is not None and len(prompt_ids) + settings.max_tokens > engine.max_length:
                _end_for_room(each, len(prompt_ids), settings.max_tokens, engine.max_length)
                continue
            asked.append(each)
            requests.append(Request(prompt_ids, settings))
        for each, request, completion in zip(asked, requests, engine.generate(requests), strict=True):
            _advance(each, request, never_empty(completion, stop_id), chat, tokenizer)
    return [_record(each) for each in plays]


def _end_for_room(each: _Play, prompt: int, completion: int, longest: int) -> None:
    if not each.turns:
        raise ConfigError(
            f"task {each.task.id}: a prompt of {prompt} tokens and rollouts.max_tokens {completion} do not fit into "
            f"the engine's {longest}"
        )
    each.ended = "room"


def _advance(each: _Play, request: Request, completion: Completion, chat: ChatFormat, tokenizer: Any) -> None:
    answer = read_answer(completion, each.mode, chat, tokenizer)
    each.turns.append(Turn(request.prompt_ids, completion, answer))
    each.messages.append(as_message(answer, chat))
    if completion.finish != "stop":
        each.ended = "length"
    elif SPECIAL_TOKEN in answer.faults:
        each.ended = "malformed"
    elif results := each.episode.step(answer):
        each.messages += [in_plain_text(result, chat) for result in results]
    else:
        each.ended = "done"


def _record(each: _Play) -> EpisodeRecord:
    return EpisodeRecord(
        each.task, each.sample, each.mode, tuple(each.turns), tuple(each.messages), each.episode.success(),
        each.ended or "turns",
    )  # fmt: skip
