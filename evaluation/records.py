"""What is kept of every completion: its tokens as soon as it ends, so that a stopped run goes on from there, and its
verdict and text once a suite is done."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Lock
from typing import IO, TYPE_CHECKING, Any

from nanoalign.budget_control.measure import Reading
from nanoalign.common.files import SURROGATES, atomic_file, content_hash
from nanoalign.data_recipes.conversation import ToolCall
from nanoalign.reward.base import Sample, Score
from nanoalign.rollouts.base import Completion, Done, Mode, Request, RolloutEngine

if TYPE_CHECKING:
    from nanoalign.rollouts.episodes import EpisodeRecord


def label(mode: Mode) -> str:
    """A mode's name: ``think``, ``think@1024`` under a budget, ``no_think``."""
    if not mode.thinking:
        return "no_think"
    return "think" if mode.budget is None else f"think@{mode.budget}"


class Kept:
    """The completions of one suite in one mode, in a file of JSON lines to which each is added as it ends.

    A line is known again by its request (prompt and sampling): a file of other prompts or settings gives nothing back.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None
        self._found = dict(self._read())

    def find(self, request: Request) -> Completion | None:
        """What an earlier run kept for this request."""
        return self._found.get(_name(request))

    def keep(self, request: Request, completion: Completion) -> None:
        """Adds a completion; it is on the disk when this returns, as far as a crash of the process goes."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _end_line(self.path)
            self._file = self.path.open("a", encoding="utf-8")
        row = {
            "request": _name(request), "finish": completion.finish, "tokens": completion.token_ids,
            "forced": [place for place, forced in enumerate(completion.forced) if forced],
        }  # fmt: skip
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> Iterator[tuple[str, Completion]]:
        if not self.path.exists():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the line that was under way when the process died
                continue
            tokens, forced = tuple(row["tokens"]), set(row["forced"])
            marks = tuple(place in forced for place in range(len(tokens)))
            yield row["request"], Completion(tokens, (), marks, row["finish"])


class Keeping:
    """An engine for episodes whose completions are kept as they end: played again, an episode that was stopped comes to
    where it stood."""

    def __init__(self, engine: RolloutEngine, kept: Kept) -> None:
        self.engine, self.kept, self.max_length = engine, kept, engine.max_length
        self._lock = Lock()
        if hasattr(engine, "submit"):
            self.submit = self._submit

    def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        """As the engine's own; only what is not kept is asked for."""
        found = [self.kept.find(request) for request in requests]
        missing = [place for place, completion in enumerate(found) if completion is None]
        if missing:

            def keep(number: int, completion: Completion) -> None:
                self._keep(requests[missing[number]], completion)

            for place, completion in zip(missing, self.engine.generate([requests[place] for place in missing], keep)):
                found[place] = completion
        return [completion for completion in found if completion is not None]

    def _submit(self, requests: Sequence[Request]) -> "list[Future[Completion]]":
        answers: list[Future[Completion]] = []
        for request in requests:
            if (found := self.kept.find(request)) is not None:
                answers.append(Future())
                answers[-1].set_result(found)
                continue
            [asked] = self.engine.submit([request])  # type: ignore[attr-defined]
            asked.add_done_callback(partial(self._ended, request))
            answers.append(asked)
        return answers

    def _ended(self, request: Request, asked: "Future[Completion]") -> None:
        if not asked.cancelled() and asked.exception() is None:
            self._keep(request, asked.result())

    def _keep(self, request: Request, completion: Completion) -> None:
        with self._lock:
            self.kept.keep(request, completion)


def _name(request: Request) -> str:
    return content_hash([list(request.prompt_ids), asdict(request.sampling)])


def _end_line(path: Path) -> None:
    """Ends the last line of a file that was cut off in the middle of it."""
    if path.exists() and (size := path.stat().st_size):
        with path.open("rb+") as file:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0, os.SEEK_END)
                file.write(b"\n")


def record(
    suite: str, mode: Mode, task: str, number: int, domain: str, sample: Sample, reading: Reading, score: float
) -> dict[str, Any]:
    """One completion's row: ``task`` is its task's id, ``number`` which of the task's completions it is."""
    return {
        "suite": suite, "mode": label(mode), "task": task, "number": number, "domain": domain,
        "question": content_hash([[each.role, each.content] for each in sample.messages]),
        "gold": sample.task.get("answer"), "score": float(score),
        "reason": score.reason if isinstance(score, Score) else "", "faults": list(sample.answer.faults),
        "thinking_tokens": reading.thinking_tokens, "answer_tokens": reading.answer_tokens,
        "finished": reading.finished, "cut": reading.cut, "well_formed": reading.well_formed,
        "prompt": reading.prompt, "thinking": sample.answer.reasoning, "answer": sample.answer.content,
        "tool_calls": _calls(sample.answer.tool_calls),
    }  # fmt: skip


def episode_record(suite: str, mode: Mode, task: str, domain: str, played: "EpisodeRecord") -> dict[str, Any]:
    """One episode's row, with all that was said in it."""
    first = next((place for place, each in enumerate(played.messages) if each.role == "assistant"), None)
    return {
        "suite": suite, "mode": label(mode), "task": task, "number": 0, "domain": domain,
        "question": content_hash([[each.role, each.content] for each in played.messages[:first]]),
        "score": float(played.success), "reason": played.reason or ("" if played.ended == "done" else played.ended),
        "faults": sorted(played.faults), "turns": len(played.turns), "tokens": played.tokens,
        "messages": [
            {"role": each.role, "content": each.content}
            | ({"thinking": each.reasoning, "tool_calls": _calls(each.tool_calls)} if each.role == "assistant" else {})
            for each in played.messages
        ],
    }  # fmt: skip


def _calls(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    return [{"name": call.name, "arguments": call.arguments} for call in calls]


def write_records(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as JSON lines, all or none."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", errors=SURROGATES) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The rows of one suite in one mode."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def task_names(ids: Sequence[str]) -> list[str]:
    """Names of tasks, each once: ids, with the place after those that are empty or given twice."""
    seen: set[str] = set()
    names = []
    for place, name in enumerate(ids):
        unique = name if name and name not in seen else f"{name}#{place}"
        seen.add(unique)
        names.append(unique)
    return names
