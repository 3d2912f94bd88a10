"""Calls a user's function: with our samples, or exactly as TRL calls a reward function."""

import asyncio
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.common.printable import nearest
from nanoalign.common.user_code import blame, find, load
from nanoalign.data_recipes.conversation import Message
from nanoalign.reward.base import Progress, RewardError, Sample
from nanoalign.reward.config import OwnReward
from nanoalign.reward.own.signature import GIVEN, SAMPLES, Signature, of_object
from nanoalign.reward.sandbox import TOO_LONG

ALIASES = {"ground_truth": "answer", "solution": "answer", "task": "kind"}
"""Columns that a task need not hold: what TRL's examples call them, and what our tasks do."""
EXCERPT = 120
"""Characters of a prompt or an answer in an error."""


@dataclass(frozen=True)
class Failure:
    """Why a sample has no score."""

    reason: str
    """For the count."""
    detail: str
    """For the error: with the user's file and line."""


Value = float | Failure | None
"""A score; or why there is none; or that the reward does not apply (None)."""


class Function:
    """A user's function, imported, with what the recipe sets. Raises ConfigError where it cannot be imported or
    called."""

    def __init__(self, key: str, name: str, section: OwnReward) -> None:
        found = find(key)
        self.name, self.file = name, found.file
        self.code: Any = load(found)
        if not callable(self.code) or inspect.isclass(self.code):
            what = "is a class" if inspect.isclass(self.code) else "is not a function"
            raise ConfigError(f"reward {name!r}: `{found.name}` in {self.file} {what}")
        try:
            self.signature: Signature = of_object(self.code)
        except (TypeError, ValueError):
            raise ConfigError(f"reward {name!r}: `{found.name}` in {self.file} has no signature to be read") from None
        self.parameters = section.parameters
        if (fault := self.signature.fault(self.parameters)) is not None:
            raise ConfigError(f"reward {name!r}: {self.file}: {' '.join(part for part in fault if part)}")
        said = section.completions
        self.messages = self.signature.messages if said is None else said == "messages"

    def scores(self, samples: Sequence[Sample], progress: Progress, columns: Iterable[str]) -> list[Value]:
        """One value a sample. Where the function raises on several, each is asked alone. Raises RewardError for what is
        no sample's fault: another number of scores, a column that is not there."""
        given = self.arguments(samples, progress, columns)
        try:
            result = self.code(**given)
            if self.signature.awaited:
                result = asyncio.run(result)
            if inspect.isgenerator(result):
                result = list(result)
        except (Exception, SystemExit) as error:
            if len(samples) == 1:
                return [self.raised(error)]
            alone = [self.scores([sample], progress, columns)[0] for sample in samples]
            return self.blamed(alone, error)
        return self.read(result, len(samples))

    async def awaited(self, samples: Sequence[Sample], progress: Progress, columns: Iterable[str],
                      seconds: float | None) -> list[Value]:  # fmt: skip
        """As :meth:`scores`, of an async function; where it takes more than ``seconds``, no sample has a score."""
        given = self.arguments(samples, progress, columns)
        try:
            result = await asyncio.wait_for(self.code(**given), seconds)
        except TimeoutError as error:
            if seconds is None:
                return [self.raised(error)] * len(samples)
            late = Failure(TOO_LONG, f"took more than {seconds:g} s for {len(samples)} samples")
            return [late] * len(samples)
        except (Exception, SystemExit) as error:
            if len(samples) == 1:
                return [self.raised(error)]
            each = await asyncio.gather(*(self.awaited([one], progress, columns, seconds) for one in samples))
            return self.blamed([values[0] for values in each], error)
        return self.read(result, len(samples))

    def arguments(self, samples: Sequence[Sample], progress: Progress, columns: Iterable[str]) -> dict[str, Any]:
        """What the function is called with. Raises RewardError for a parameter that no task has as a column."""
        if self.signature.takes_samples:
            return {SAMPLES: list(samples), **self.parameters}
        given = as_trl(samples, progress, columns, self.messages) | self.parameters
        missing = [name for name in self.signature.required if name not in given]
        if missing:
            known = [name for name in given if name not in GIVEN]
            raise RewardError(
                f"reward {self.name!r}: {self.file}: its parameter `{missing[0]}` is no key of the samples' tasks"
                f"{nearest(missing[0], known)}; or set it in the recipe"
            )
        return given if self.signature.any_keyword else {n: v for n, v in given.items() if n in self.signature.named}

    def read(self, result: Any, count: int) -> list[Value]:
        """What the function returned, checked."""
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()  # or Python warns that it was never awaited
            raise RewardError(f"reward {self.name!r}: {self.file}: returned a coroutine: declare it with `async def`")
        single = getattr(result, "ndim", 1) == 0  # an array or a tensor of one number, which has an __iter__ too
        if single or isinstance(result, str | bytes | Mapping) or not hasattr(result, "__iter__"):
            shown = f"{type(result).__name__} {result!r}"[:EXCERPT]
            raise RewardError(f"reward {self.name!r}: {self.file}: returned {shown}, not a list of scores")
        values = list(result)
        if len(values) != count:
            raise RewardError(f"reward {self.name!r}: {self.file}: gave {len(values)} scores for {count} samples")
        return [self.number(value) for value in values]

    def number(self, value: Any) -> Value:
        if value is None:
            return None
        try:
            number = float("x") if isinstance(value, str | bytes) else float(value)
        except Exception:  # whatever a value's own conversion raises; OverflowError for a large int
            return Failure("gave no number", f"gave {value!r}"[:EXCERPT] + f", not a number ({self.file})")
        return number if math.isfinite(number) else Failure(f"gave {number}", f"gave {number} ({self.file})")

    def raised(self, error: BaseException) -> Failure:
        what = type(error).__name__
        said = str(error)
        text = f"raised {what}: {said[: 4 * EXCERPT]}" if said else f"raised {what}"
        hint = ""
        if not (self.messages or self.signature.takes_samples) and isinstance(error, TypeError) and "indices" in said:
            hint = "; it was given text: `completions: messages` in the recipe gives it messages"
        return Failure(f"raised {what}", f"{text} ({blame(error, self.file)}){hint}")

    def blamed(self, alone: list[Value], error: BaseException) -> list[Value]:
        if not any(isinstance(value, Failure) for value in alone):
            together = f"for {len(alone)} samples together and for none alone"
            raise RewardError(f"reward {self.name!r} {self.raised(error).detail}, {together}")
        return alone


def as_trl(samples: Sequence[Sample], progress: Progress, columns: Iterable[str], messages: bool) -> dict[str, Any]:
    """What TRL calls a reward function with: prompts and completions (text, or lists of messages), completion ids, the
    trainer's state, and a list for each column: the keys of the samples' tasks (None where a task has it not)."""
    made: dict[str, Any] = {
        "prompts": [prompt_of(sample, messages) for sample in samples],
        "completions": [completion_of(sample, messages) for sample in samples],
        "trainer_state": progress,
        "log_extra": _ignored,
        "log_metric": _ignored,
    }
    for name in ("completion_ids", "completions_ids"):
        made[name] = [list(sample.completion_ids) for sample in samples]
    names = [*dict.fromkeys((*columns, *(key for sample in samples for key in sample.task)))]
    found = {name: [sample.task.get(name) for sample in samples] for name in names if name not in GIVEN}
    for alias, name in ALIASES.items():
        if alias not in found and name in found:
            found[alias] = found[name]
    return found | made


def _ignored(*values: Any, **named: Any) -> None:
    """For ``log_extra`` and ``log_metric``: our log has a reward's scores, and nothing else of it."""


def prompt_of(sample: Sample, messages: bool) -> Any:
    """The prompt as messages, or its messages' contents, a line each."""
    if messages:
        return [{"role": each.role, "content": each.content} for each in sample.messages]
    return "\n".join(each.content for each in sample.messages)


def completion_of(sample: Sample, messages: bool) -> Any:
    """All that the model wrote, thinking included, as TRL gives it: with thinking in ``<think>`` tags, whatever the
    format's are. As a message it has its calls besides."""
    answer = sample.answer
    thought = f"<think>{answer.reasoning}" if answer.reasoning else ""
    if thought and (sample.closed or answer.content):
        thought += "</think>"
    text = thought + answer.content
    if not messages:
        return text
    calls = [{"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
             for call in answer.tool_calls]  # fmt: skip
    return [{"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})]


def described(sample: Sample) -> str:
    """A sample for an error message."""
    last = next((each for each in reversed(sample.messages) if each.role == "user"), Message("user", ""))
    return f"for the prompt {_excerpt(last.content)} and the answer {_excerpt(sample.answer.content)}"


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= EXCERPT else text[: EXCERPT - 3] + "...")
