"""The public benchmarks that can be named as suites: one table, read without torch.

An entry says where its tasks come from, how they are read, how an answer is scored and how it is sampled. ``code`` is
``tasks(reading) -> Iterable[Conversation]``: the conversations end with a user's message, their ``id`` is the
benchmark's own, their ``domain`` the part of it that is reported apart, and their ``task`` what the reward reads.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoalign.common.errors import ConfigError
from nanoalign.common.intervals import Estimate
from nanoalign.common.printable import nearest, tokens
from nanoalign.common.table import Entry

if TYPE_CHECKING:
    from nanoalign.data_recipes.chat.base import ChatFormat


@dataclass(frozen=True)
class Data:
    """Rows of a benchmark: files below the data root, else a data set of the hub."""

    hub: str
    """Its id there."""
    split: str
    files: tuple[str, ...]
    """Globs below the data root: the first that is there is read, all files that it finds. The last is the hub's own
    path below the folder of its id, as ``hf download --repo-type dataset --local-dir`` writes it."""
    config: str | None = None
    """The hub's configuration, if it has several."""
    revision: str | None = None
    """The commit that is read from the hub; None: its newest."""
    loads: bool = True
    """``datasets`` can load it from the hub; False: it has to be mirrored."""
    fetch: str = ""
    """The command that mirrors it, where it is not ``hf download``; ``{root}`` stands for the data root."""


@dataclass(frozen=True)
class Benchmark(Entry):
    """A public benchmark."""

    licence: str = ""
    """Of the tasks: an SPDX identifier where there is one."""
    reward: str = "task"
    """The reward that scores an answer (reward/table.py); correct from 0.5 on, unless ``judged``."""
    metric: str = "accuracy"
    """What the mean of the scores is called."""
    data: tuple[Data, ...] = ()
    """Empty where the tasks are made here."""
    tasks: int = 100
    """How many there are, for plans."""
    completions: int = 1
    """Answers to each task, unless the suite says otherwise: more where there are few tasks."""
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 32768
    """Room for thinking and answer, where the command line leaves it open; less where the model's context ends."""
    answer_tokens: int = 4096
    """Room for the answer after a thinking budget and its grace, and without thinking."""
    judged: bool = False
    """The score is not right or wrong: it is averaged. The suite needs `judge:`, its endpoint."""
    graded: bool = False
    """The score is a share of what was asked for: it is averaged."""
    environment: str = ""
    """``module:class(conversations, data_root)``: the environment in which the tasks are played, where they take
    several turns."""
    turns: int = 1
    """Answers in an episode, at most."""
    figures: str = ""
    """``module:function(conversations, samples, scores) -> dict[str, Estimate]``: further figures of the benchmark."""

    def further(self) -> Callable[..., Mapping[str, Estimate]] | None:
        """The function of ``figures``, if there is one."""
        function: Any = Entry(self.figures, "").load() if self.figures else None
        return function

    def pinned(self, revision: str | None) -> "Benchmark":
        """The same with another commit of the hub's data sets, if one is given."""
        if revision is None:
            return self
        return replace(self, data=tuple(replace(each, revision=revision) for each in self.data))


@dataclass(frozen=True)
class TaskReading:
    """What a benchmark's tasks are read with."""

    name: str
    """As it was asked for: ``aime25``, ``ruler-131072``."""
    benchmark: Benchmark
    length: int | None = None
    """What stands for ``<length>`` in its name."""
    data_root: Path | None = None
    seed: int = 0
    samples: int | None = None
    """Tasks that are wanted; None: all. Tasks that are made may be made in this number; more are cut off."""
    tokenizer: Any = None
    """The model's own, for tasks of an exact length; None where a plan only counts."""
    chat: "ChatFormat | None" = None


def _live_code_bench(what: str, files: str, tasks: int) -> Benchmark:
    hub = "livecodebench/code_generation_lite"
    return Benchmark(
        "nanoalign.evaluation.code_tasks:live_code_bench", f"LiveCodeBench, {what}: programs judged by test cases",
        "CC-BY-4.0", "code", tasks=tasks, data=(
            Data(hub, "test", (f"{hub}/{files}",), revision="0fe84c3912ea0c4d4a78037083943e8f0c4dd505", loads=False),
        ),
    )  # fmt: skip


def _arena_hard(version: str, what: str, baselines: tuple[str, ...], tasks: int) -> Benchmark:
    hub = "lmarena-ai/arena-hard-auto"
    files = ("question", *(f"model_answer/{name}" for name in baselines))
    return Benchmark(
        "nanoalign.evaluation.arena:arena_hard", f"Arena-Hard {version}, {what}", "Apache-2.0", "arena", "win rate",
        tuple(Data(hub, "train", (f"{hub}/data/arena-hard-{version}/{file}.jsonl",), loads=False) for file in files),
        tasks=tasks, judged=True, figures="nanoalign.evaluation.arena:figures",
    )  # fmt: skip


def _bfcl(files: str) -> Data:
    hub = "gorilla-llm/Berkeley-Function-Calling-Leaderboard"
    places = (f"bfcl_v4/{files}", f"bfcl-eval/bfcl_eval/data/{files}", f"{hub}/{files.replace('v4', 'v3')}")
    command = "pip install --no-deps --target {root}/bfcl-eval bfcl-eval==2026.3.23"
    return Data(hub, "train", places, loads=False, fetch=command)


_AIME: dict[str, Any] = {"reward": "math", "tasks": 30, "completions": 16}
BENCHMARKS = {
    "aime24": Benchmark(
        "nanoalign.evaluation.benchmark_tasks:mathematics", "AIME 2024, both papers: 30 problems", "MAA", **_AIME,
        data=(Data("HuggingFaceH4/aime_2024", "train", ("HuggingFaceH4/aime_2024/data/train-*.parquet",),
                   revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a"),)),
    "aime25": Benchmark(
        "nanoalign.evaluation.benchmark_tasks:mathematics", "AIME 2025, both papers: 30 problems", "MAA", **_AIME,
        data=(Data("math-ai/aime25", "test", ("math-ai/aime25/test.jsonl",),
                   revision="563bb8404243c5f09de6ec262f2db674fe5bce9b"),)),
    "math500": Benchmark(
        "nanoalign.evaluation.benchmark_tasks:mathematics", "MATH-500: 500 problems of MATH's test split", "MIT",
        "math", data=(Data("HuggingFaceH4/MATH-500", "test", ("HuggingFaceH4/MATH-500/test.jsonl",),
                           revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"),),
        tasks=500, completions=4),
    "gpqa-diamond": Benchmark(
        "nanoalign.evaluation.benchmark_tasks:gpqa", "GPQA Diamond: 198 questions with four options", "CC-BY-4.0",
        "math", tasks=198, data=(
            Data("Idavidrein/gpqa", "train", ("Idavidrein/gpqa/gpqa_diamond.csv",), "gpqa_diamond",
                 revision="633f5ee89ab8ad4522a9f850766b73f62147ffdd"),
        ), completions=4),
    "ifeval": Benchmark(
        "nanoalign.evaluation.benchmark_tasks:ifeval", "IFEval: 541 prompts with instructions that can be verified",
        "Apache-2.0", "ifeval", "prompt-level strict accuracy", (
            Data("google/IFEval", "train", ("ifeval/input_data.jsonl", "google/IFEval/ifeval_input_data.jsonl"),
                 revision="966cd89545d6b6acfd7638bc708b98261ca58e84"),
        ), tasks=541, figures="nanoalign.evaluation.benchmark_figures:ifeval"),
    "ruler-<length>": Benchmark(
        "nanoalign.evaluation.ruler_suite:ruler", "RULER's thirteen kinds of tasks at any length, made here", "own",
        "ruler", "string match", tasks=325, temperature=0.0, top_p=1.0, answer_tokens=128, graded=True),
    "humaneval": Benchmark(
        "nanoalign.evaluation.code_tasks:human_eval", "HumanEval: 164 Python functions to complete", "MIT", "code",
        data=(Data("openai/openai_humaneval", "test", (
            "code/HumanEval.jsonl.gz", "openai/openai_humaneval/openai_humaneval/test-*.parquet",
        ), revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544"),), tasks=164),
    "livecodebench": _live_code_bench("all releases that are mirrored", "test*.jsonl", 1055),
    "livecodebench-v5": _live_code_bench("what release 5 added, to January 2025", "test5.jsonl", 167),
    "livecodebench-v6": _live_code_bench("what release 6 added, to April 2025", "test6.jsonl", 175),
    "arena-hard": _arena_hard("v0.1", "500 prompts judged against GPT-4's answers", ("gpt-4-0314",), 500),
    "arena-hard-v2": _arena_hard(
        "v2.0", "750 prompts judged against o3-mini's and Gemini 2.0 Flash's answers",
        ("o3-mini-2025-01-31", "gemini-2.0-flash-001"), 750),
    "bfcl": Benchmark(
        "nanoalign.evaluation.benchmark_tasks:bfcl", "BFCL v4, single-turn Python categories: calls by its AST rule",
        "Apache-2.0", "bfcl", "accuracy over tasks", (_bfcl("BFCL_v4_*.json"),), tasks=1058, temperature=0.0, top_p=1.0,
        figures="nanoalign.evaluation.benchmark_figures:bfcl"),
    "bfcl-multi-turn": Benchmark(
        "nanoalign.evaluation.multi_turn:bfcl", "BFCL v4, multi-turn categories: states and results of simulators",
        "Apache-2.0", metric="accuracy over tasks", data=(_bfcl("BFCL_v4_multi_turn_*.json"),), tasks=800,
        temperature=0.0, top_p=1.0, max_tokens=8192, answer_tokens=1024, turns=200,
        environment="nanoalign.rollouts.environments.bfcl:BfclMultiTurn",
        figures="nanoalign.evaluation.benchmark_figures:bfcl"),
}  # fmt: skip
"""Name to benchmark. ``<length>`` in a name stands for a number of tokens: ``131072``, ``128k``."""


def is_benchmark(name: str) -> bool:
    """Whether a suite of this name is a public benchmark."""
    return _entry(name) is not None


def benchmark(name: str) -> tuple[Benchmark, int | None]:
    """The entry of that name, and the length that the name holds. Raises ConfigError with the nearest name."""
    found = _entry(name)
    if found is None:
        raise ConfigError(f"unknown benchmark `{name}`{advice(name)}")
    return found


def advice(name: str, more: Iterable[str] = ()) -> str:
    """What to add to "unknown ...": a length is missing, or the nearest name, of ``more`` too."""
    for stem in (each.removesuffix("-<length>") for each in BENCHMARKS if each.endswith("-<length>")):
        if name == stem or name.startswith(f"{stem}-"):
            return f": give a length in tokens, as in {stem}-128k"
    return nearest(name, [*more, *BENCHMARKS])


def _entry(name: str) -> tuple[Benchmark, int | None] | None:
    if name in BENCHMARKS and "<" not in name:
        return BENCHMARKS[name], None
    stem, _, length = name.rpartition("-")
    if f"{stem}-<length>" in BENCHMARKS and (number := tokens(length)):
        return BENCHMARKS[f"{stem}-<length>"], number
    return None
