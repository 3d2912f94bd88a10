"""Episodes in an environment, many at once: turn by turn, or, where the engine takes questions at any time, each at its
own pace."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from nanoalign.budget_control.rule import BudgetRule
from nanoalign.budget_control.vocabulary import ThinkingTokens
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
from nanoalign.rollouts.overlapped import Overlapped
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
    its calls were not run; room: the conversation so far leaves the engine no room for another turn; turns, tokens: a
    limit was reached."""
    reward: float = 0.0
    """The environment's, from 0 to 1, however the episode ended."""
    faults: Mapping[str, int] = field(default_factory=dict)
    """How often its tools went wrong, by kind."""
    credit: float = 0.0
    """How near it came, from 0 to 1, where the environment says so; else its reward."""
    reason: str = ""
    """Why it is no success, where the environment says so."""

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
    place: int
    """Its number among the attempts."""
    text: str = ""
    """The last prompt."""
    turns: list[Turn] = field(default_factory=list)
    ended: str = ""

    @property
    def tokens(self) -> int:
        return sum(len(turn.completion.token_ids) for turn in self.turns)


Settings = Callable[[int, int], tuple[Mode, Sampling]]
"""(attempt's place, turn) to the mode and the settings of that turn; the mode must not depend on the turn."""


@dataclass(frozen=True)
class Limits:
    """What ends an episode that does not end itself. It is not a success then; nor is one whose turn was cut or is
    malformed, and the calls of such a turn are not run."""

    turns: int
    """Assistant turns."""
    tokens: int | None = None
    """Tokens that the model may write in all turns together; a turn gets what is left."""
    budget_per_episode: bool = False
    """A mode's thinking budget is for all turns together; a turn gets what is left."""


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
        max_turns: assistant turns after which an episode is over.

    Raises:
        ConfigError: a task's own prompt leaves the engine no room for an answer.
    """
    attempts = [(task, sample) for task in tasks for sample in range(samples_per_task)]

    def settings(place: int, turn: int) -> tuple[Mode, Sampling]:
        return sampling(*divmod(place, samples_per_task), turn)

    return begin(engine, environment, attempts, settings, chat, tokenizer, Limits(max_turns))()


def begin(
    engine: RolloutEngine, environment: Environment, attempts: Sequence[tuple[Task, int]], settings: Settings,
    chat: ChatFormat, tokenizer: Any, limits: Limits,
) -> Callable[[], list[EpisodeRecord]]:  # fmt: skip
    """Begins an episode for each attempt (a task, and its number among the task's); what is returned plays them to the
    end and gives their records, in order.

    A turn's prompt is the last one, what the model wrote, and what the chat format puts after it, token by token as
    sampled; where the format rewrites history (leaves earlier thinking out), it is rendered anew. An engine with
    ``submit`` is asked for all first turns at once, and then for each episode's next turn as soon as it is known;
    others for a turn of all episodes at a time.
    """
    scene = _Scene(environment, settings, chat, tokenizer, limits, engine.max_length)
    episodes = start_all(environment, [task for task, _ in attempts])
    plays = [
        _begin(place, task, sample, settings(place, 0)[0], episode, chat)
        for place, ((task, sample), episode) in enumerate(zip(attempts, episodes, strict=True))
    ]
    submit = getattr(engine, "submit", None)
    if submit is None:
        return lambda: scene.records(plays, lambda: _in_step(scene, plays, engine))
    overlapped = Overlapped(scene.request, scene.advance, submit)
    overlapped.ask(plays)
    return lambda: scene.records(plays, overlapped.wait)


@dataclass(frozen=True)
class _Scene:
    """What all episodes of a call share."""

    environment: Environment
    settings: Settings
    chat: ChatFormat
    tokenizer: Any
    limits: Limits
    longest: int | None
    """Tokens that the engine takes, prompt and completion together."""

    def request(self, each: "_Play") -> Request | None:
        """The question of an episode's next turn; None where the episode is over for want of turns, tokens or room."""
        turn = len(each.turns)
        if turn >= self.limits.turns:
            each.ended = "turns"
            return None
        settings = self.settings(each.place, turn)[1]
        if self.limits.tokens is not None:
            settings = replace(settings, max_tokens=min(settings.max_tokens, self.limits.tokens - each.tokens))
            if settings.max_tokens < 1:
                each.ended = "tokens"
                return None
        if self.limits.budget_per_episode and settings.thinking_budget is not None:
            settings = replace(settings, thinking_budget=max(0, settings.thinking_budget - self.thought(each)))
        prompt_ids = self.prompt_ids(each)
        if self.longest is not None and len(prompt_ids) + settings.max_tokens > self.longest:
            _end_for_room(each, len(prompt_ids), settings.max_tokens, self.longest)
            return None
        return Request(prompt_ids, settings)

    @cached_property
    def thinking(self) -> ThinkingTokens:
        """Made once: it reads the whole vocabulary."""
        return ThinkingTokens.from_tokenizer(
            self.tokenizer, self.chat.think_open, self.chat.think_close, self.chat.stop
        )

    def thought(self, each: "_Play") -> int:
        """Thinking tokens of an episode so far."""
        rule = BudgetRule(self.thinking, None)
        return sum(rule.thinking_tokens(turn.prompt_ids, turn.completion.token_ids) for turn in each.turns)

    def prompt_ids(self, each: "_Play") -> tuple[int, ...]:
        text = self.chat.prompt(each.messages, each.tools, thinking=each.mode.thinking)
        before, each.text = each.text, text
        if each.turns:
            last = each.turns[-1]
            said = before + self.tokenizer.decode(
                last.completion.token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            if text.startswith(said):
                more = self.tokenizer.encode(text[len(said) :], add_special_tokens=False)
                return (*last.prompt_ids, *last.completion.token_ids, *more)
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def advance(self, asked: "Sequence[tuple[_Play, Request, Completion]]") -> None:
        """Takes in what was written, and the environment's answers to it."""
        stop_id = self.tokenizer.convert_tokens_to_ids(self.chat.stop[0])
        answers = [
            _answer(each, request, never_empty(completion, stop_id), self.chat, self.tokenizer)
            for each, request, completion in asked
        ]
        running = [(each, answer) for (each, _, _), answer in zip(asked, answers) if not each.ended]
        results = step_all(self.environment, [each.episode for each, _ in running], [answer for _, answer in running])
        for (each, _), messages in zip(running, results, strict=True):
            each.messages += [in_plain_text(message, self.chat) for message in messages]
            each.ended = "done" if is_over(each.episode, messages) else ""
            each.tools = tuple(getattr(each.episode, "tools", each.tools))

    def records(self, plays: "Sequence[_Play]", until_over: Callable[[], None]) -> list[EpisodeRecord]:
        until_over()
        outcomes = end_all(self.environment, [each.episode for each in plays])
        return [_record(each, outcome) for each, outcome in zip(plays, outcomes, strict=True)]


def _in_step(scene: _Scene, plays: "Sequence[_Play]", engine: RolloutEngine) -> None:
    """Turn by turn, a turn of all episodes at once."""
    while live := [each for each in plays if not each.ended]:
        asked = [(each, request) for each in live if (request := scene.request(each)) is not None]
        if asked:
            completions = engine.generate([request for _, request in asked])
            scene.advance([(each, request, given) for (each, request), given in zip(asked, completions, strict=True)])


def _end_for_room(each: _Play, prompt: int, completion: int, longest: int) -> None:
    if not each.turns:
        raise ConfigError(
            f"task {each.task.id}: a prompt of {prompt} tokens and rollouts.max_tokens {completion} do not fit into "
            f"the engine's {longest}"
        )
    each.ended = "room"


def _begin(place: int, task: Task, sample: int, mode: Mode, episode: Episode, chat: ChatFormat) -> _Play:
    messages, tools = opening(episode, task)
    return _Play(task, sample, mode, episode, [in_plain_text(message, chat) for message in messages], tools, place)


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
    success = outcome.success and each.ended == "done"
    credit, why = getattr(each.episode, "credit", None), getattr(each.episode, "why", None)
    return EpisodeRecord(
        each.task, each.sample, each.mode, tuple(each.turns), tuple(each.messages), success, each.ended, outcome.reward,
        dict(getattr(each.episode, "faults", {})), outcome.reward if credit is None else credit(),
        "" if success or why is None else why(),
    )  # fmt: skip
