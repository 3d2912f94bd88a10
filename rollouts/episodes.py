"""Episodes in an environment: many at once, turn by turn, so that every turn is one batch for the engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.data_recipes.chat.answers import SPECIAL_TOKEN, as_message, in_plain_text
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.conversation import Answer, Message
from nanoalign.rollouts.base import Completion, Mode, Request, RolloutEngine, Sampling
from nanoalign.rollouts.environments.base import (
    Environment,
    Episode,
    Outcome,
    Task,
    end_all,
    is_over,
    opening,
    start_all,
    step_all,
)  # fmt: skip
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
    """done: the model or the environment ended it; length: a turn was cut; malformed: a turn held a special token, and
    its calls were not run; room: the conversation so far leaves the engine no room for another turn; turns: max_turns
    was reached."""
    reward: float = 0.0
    """The environment's, from 0 to 1, however the episode ended."""
    faults: Mapping[str, int] = field(default_factory=dict)
    """How often its tools went wrong, by kind."""

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
    tools: tuple[Mapping[str, Any], ...]
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
    attempts = [(number, sample) for number in range(len(tasks)) for sample in range(samples_per_task)]
    episodes = start_all(environment, [tasks[number] for number, _ in attempts])
    plays = [
        _begin(tasks[number], sample, sampling(number, sample, 0)[0], episode, chat)
        for (number, sample), episode in zip(attempts, episodes, strict=True)
    ]
    for turn in range(max_turns):
        live = [(place, each) for place, each in enumerate(plays) if not each.ended]
        if not live:
            break
        asked, requests = [], []
        for place, each in live:
            text = chat.prompt(each.messages, each.tools, thinking=each.mode.thinking)
            prompt_ids = tuple(tokenizer.encode(text, add_special_tokens=False))
            settings = sampling(place // samples_per_task, each.sample, turn)[1]
            if engine.max_length is not None and len(prompt_ids) + settings.max_tokens > engine.max_length:
                _end_for_room(each, len(prompt_ids), settings.max_tokens, engine.max_length)
                continue
            asked.append(each)
            requests.append(Request(prompt_ids, settings))
        answers = [
            _answer(each, request, never_empty(completion, stop_id), chat, tokenizer)
            for each, request, completion in zip(asked, requests, engine.generate(requests), strict=True)
        ]
        running = [(each, answer) for each, answer in zip(asked, answers) if not each.ended]
        results = step_all(environment, [each.episode for each, _ in running], [answer for _, answer in running])
        for (each, _), messages in zip(running, results, strict=True):
            each.messages += [in_plain_text(message, chat) for message in messages]
            each.ended = "done" if is_over(each.episode, messages) else ""
    outcomes = end_all(environment, [each.episode for each in plays])
    return [_record(each, outcome) for each, outcome in zip(plays, outcomes, strict=True)]


def _end_for_room(each: _Play, prompt: int, completion: int, longest: int) -> None:
    if not each.turns:
        raise ConfigError(
            f"task {each.task.id}: a prompt of {prompt} tokens and rollouts.max_tokens {completion} do not fit into "
            f"the engine's {longest}"
        )
    each.ended = "room"


def _begin(task: Task, sample: int, mode: Mode, episode: Episode, chat: ChatFormat) -> _Play:
    messages, tools = opening(episode, task)
    return _Play(task, sample, mode, episode, [in_plain_text(message, chat) for message in messages], tools)


def _answer(each: _Play, request: Request, completion: Completion, chat: ChatFormat, tokenizer: Any) -> Answer:
    """What the model wrote, added to the play; its calls are run where the turn neither was cut nor is malformed."""
    answer = read_answer(completion, each.mode, chat, tokenizer)
    each.turns.append(Turn(request.prompt_ids, completion, answer))
    each.messages.append(as_message(answer, chat))
    if completion.finish != "stop":
        each.ended = "length"
    elif SPECIAL_TOKEN in answer.faults:
        each.ended = "malformed"
    return answer


def _record(each: _Play, outcome: Outcome) -> EpisodeRecord:
    return EpisodeRecord(
        each.task, each.sample, each.mode, tuple(each.turns), tuple(each.messages), outcome.success,
        each.ended or "turns", outcome.reward, dict(getattr(each.episode, "faults", {})),
    )  # fmt: skip
