"""Verifier throughput and leaks: IFEval checks a second on one core, math-verify answers a second and memory over time,
reasoning-gym verdicts a second in the sandbox and in process, programs per second.

Run: ``python benchmarks/verifiers.py [--parts golds ...] [--math-calls 100000] [--json FILE]``; parts that are not run
keep the figures that the file has. Needs the mirrored data (``--data-root`` or NANOALIGN_DATA).
"""

import argparse
import gzip
import json
import os
import platform
import random
import re
import statistics
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil

from nanoalign.common.files import write_json
from nanoalign.data_recipes.conversation import Answer, Message
from nanoalign.data_recipes.generators import reasoning_gym_names
from nanoalign.reward.base import Sample
from nanoalign.reward.code import score_programs
from nanoalign.reward.instructions import CHECKERS, follows
from nanoalign.reward.mathematics import MathVerifier
from nanoalign.reward.verifier_pool import VerifierPool

GROUP = 8
"""Answers to one question of mathematics."""
BATCH = 512
PARTS = ("ifeval", "math", "golds", "reasoning_gym", "programs")


def answers(data_root: Path) -> list[str]:
    """Real answers to check: GPT-4's to MT-Bench, and people's from Open Assistant."""
    found: list[str] = []
    for line in (data_root / "chat" / "mt_bench_reference_gpt4.jsonl").open(encoding="utf-8"):
        found += [turn for choice in json.loads(line)["choices"] for turn in choice["turns"]]
    for line in (data_root / "chat" / "oasst_en_100_tree.jsonl").open(encoding="utf-8"):
        waiting = [json.loads(line)["prompt"]]
        while waiting:
            message = waiting.pop()
            found += [message["text"]] if message["role"] == "assistant" else []
            waiting += message["replies"]
    return found


def instruction_speed(data_root: Path, texts: list[str], repeats: int = 3) -> dict[str, float]:
    """Checks a second: every distinct instruction of the benchmark's 541 prompts on every text; the median of runs."""
    rows = [json.loads(line) for line in (data_root / "ifeval" / "input_data.jsonl").open(encoding="utf-8")]
    asked = {
        json.dumps(pair): pair for row in rows for pair in zip(row["instruction_id_list"], row["kwargs"], strict=True)
    }
    seconds = {id: [0.0] * repeats for id in CHECKERS}
    checks = dict.fromkeys(CHECKERS, 0)
    for repeat in range(repeats):
        for id, kwargs in asked.values():
            start = time.process_time()
            for text in texts:
                follows(text, id, kwargs)
            seconds[id][repeat] += time.process_time() - start
            checks[id] += len(texts) if repeat == 0 else 0
    total = statistics.median(sum(seconds[id][repeat] for id in CHECKERS) for repeat in range(repeats))
    figures = {"ifeval_checks": float(sum(checks.values())), "ifeval_checks_per_s_core": sum(checks.values()) / total}
    slowest = min(CHECKERS, key=lambda id: checks[id] / statistics.median(seconds[id]))
    print(f"slowest instruction: {slowest}, {checks[slowest] / statistics.median(seconds[slowest]):,.0f} checks/s")
    figures["ifeval_slowest_checks_per_s_core"] = checks[slowest] / statistics.median(seconds[slowest])
    return figures


def math_speed(calls: int, workers: int) -> dict[str, float]:
    """Answers a second through math-verify, all needing algebra, in groups of ``GROUP`` to a question as GRPO asks (so
    that a worker's cache of parsed texts serves most of them), and what is held early and late: memory of this process
    and of its workers, open files, workers, and zombies. A worker is renewed every few thousand answers, so that its
    memory is a saw-tooth: the highest of the first fifth is compared with the highest of the last."""
    verifier, rng, me = MathVerifier(workers), random.Random(0), psutil.Process()
    held: list[dict[str, float]] = []
    started, wrong = time.perf_counter(), 0
    for _ in range(0, calls, BATCH):
        pairs, expected = [], []
        for _ in range(BATCH // GROUP):
            a, b = rng.randint(2, 9999), rng.randint(2, 9999)
            for place in range(GROUP):
                right = place % 2 == 0
                pairs.append((f"{a}x+{b}", rf"\boxed{{{b} + {a if right else a + 1}x}}"))
                expected.append(float(right))
        wrong += sum(got != want for got, want in zip(verifier.scores(pairs), expected, strict=True))
        children = me.children(recursive=True)
        held.append(
            {
                "rss_mb": me.memory_info().rss / 2**20,
                "workers_rss_mb": sum(child.memory_info().rss for child in children) / 2**20,
                "files": me.num_fds(),
                "processes": len(children),
                "zombies": sum(child.status() == psutil.STATUS_ZOMBIE for child in children),
            }
        )
    seconds = time.perf_counter() - started
    fifth = max(1, len(held) // 5)
    figures = {
        "math_calls": float(calls),
        "math_workers": float(workers),
        "math_wrong": float(wrong),
        "math_calls_per_s": calls / seconds,
    }
    for name in held[0]:
        figures[f"math_{name}_first_fifth"] = max(row[name] for row in held[:fifth])
        figures[f"math_{name}_last_fifth"] = max(row[name] for row in held[-fifth:])
    return figures


def reasoning_gym_speed(workers: int, size: int = 10) -> dict[str, float]:
    """Verdicts a second of reasoning-gym's verifiers, over all its data sets with answers: by the sandboxed pool, and
    by this process as the reward did it before (a new verifier for each answer) and with its verifiers kept."""
    import reasoning_gym
    from reasoning_gym.factory import get_score_answer_fn

    names = [name for name in reasoning_gym_names() if name != "composite"]
    tasks = [(name, entry) for name in names for entry in reasoning_gym.create_dataset(name, size=size, seed=1)]
    questions = [(name, str(entry["answer"]), entry) for name, entry in tasks if entry["answer"] is not None]
    pool = VerifierPool("reasoning_gym", workers)
    pool.ask(questions)  # starts the workers
    kept = {name: get_score_answer_fn(name) for name in names}
    ways: dict[str, Callable[[], object]] = {
        "": lambda: pool.ask(questions),
        "_in_process": lambda: [get_score_answer_fn(name)(answer, entry) for name, answer, entry in questions],
        "_in_process_kept": lambda: [kept[name](answer, entry) for name, answer, entry in questions],
    }
    figures = {}
    for way, judge in ways.items():
        start = time.perf_counter()
        judge()
        figures[f"verifiers.reasoning_gym_calls_per_s{way}"] = len(questions) / (time.perf_counter() - start)
    speeds = list(figures.values())
    return figures | {
        "verifiers.reasoning_gym_ratio_vs_in_process": speeds[0] / speeds[1],
        "verifiers.reasoning_gym_ratio_vs_in_process_kept": speeds[0] / speeds[2],
    }


def program_speed(data_root: Path) -> dict[str, float]:
    """Programs a second through the sandbox, all processors at work: HumanEval's own solutions with its tests, each in
    two processes, and programs that print, in one."""
    with gzip.open(data_root / "code" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    tasks = {
        "programs_with_tests": [
            _sample(row["prompt"] + row["canonical_solution"], tests=f"{row['test']}\ncheck({row['entry_point']})")
            for row in rows
        ],
        "programs_with_cases": [_sample("print(6)", cases=[{"input": "", "output": "6"}]) for _ in rows],
    }
    figures = {}
    for name, samples in tasks.items():
        start = time.perf_counter()
        scores = score_programs(samples)
        figures[f"{name}_per_s"] = len(samples) / (time.perf_counter() - start)
        figures[f"{name}_right"] = sum(scores) / len(samples)
    return figures


def _sample(code: str, **task: object) -> Sample:
    return Sample((Message("user", "?"),), Answer(f"```python\n{code}\n```"), task)


def mirrored_golds(data_root: Path) -> list[str]:
    """The final answers of MATH (train), AIME and GSM8K as they are mirrored; two of MATH's are blank and left out."""
    golds = [
        str(row["answer"])
        for name in ("math_train_answers.json", "aime_1983_2023.json")
        for row in json.loads((data_root / "math" / name).read_text(encoding="utf-8"))
    ]
    for split in ("train", "test"):
        with (data_root / "gsm8k" / f"{split}.jsonl").open(encoding="utf-8") as file:
            golds += [json.loads(line)["answer"].rpartition("####")[2].strip() for line in file]
    return [gold for gold in golds if gold.strip()]


def plain_value(gold: str) -> Fraction | str:
    """A number without its unit and separators, else letters and digits alone: a rule that owes nothing to the
    verifier's, to tell false accepts from golds that are equal."""
    fractions = re.sub(r"\\[dt]?frac *(?:\{(\d+)\}|(\d)) *(?:\{(\d+)\}|(\d))", r"\1\2/\3\4", gold)
    bare = re.sub(r"\\text|\\\$|\^\\circ|[,{}() ]", "", fractions)
    return Fraction(bare) if re.fullmatch(r"-?\d+(\.\d+)?(/[1-9]\d*)?", bare) else bare


def gold_verdicts(data_root: Path, workers: int, others: int = 20) -> dict[str, float]:
    """Each gold against itself in a box, and each distinct one against ``others`` that are drawn from all."""
    verifier, golds = MathVerifier(workers), mirrored_golds(data_root)
    own = verifier.scores([(gold, rf"\boxed{{{gold}}}") for gold in golds])
    distinct, draw = sorted(set(golds)), random.Random(0)
    pairs = [(gold, other) for gold in distinct for other in draw.sample(distinct, others + 1) if other != gold]
    scores = verifier.scores([(gold, rf"\boxed{{{other}}}") for gold, other in pairs])
    accepted = [pair for pair, score in zip(pairs, scores, strict=True) if score]
    false = [(gold, other) for gold, other in accepted if plain_value(gold) != plain_value(other)]
    print("accepted, equal in value:", [pair for pair in accepted if pair not in false], "falsely:", false)
    return {
        "verifiers.math_golds": len(golds), "verifiers.math_gold_self": statistics.fmean(own),
        "verifiers.math_gold_pairs": len(pairs), "verifiers.math_gold_equal": len(accepted) - len(false),
        "verifiers.math_gold_cross": len(false),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=os.environ.get("NANOALIGN_DATA", "../shared/data"))
    parser.add_argument("--math-calls", type=int, default=100_000)
    parser.add_argument("--math-workers", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    if "ifeval" in options.parts:
        figures |= instruction_speed(options.data_root, answers(options.data_root))
    if "math" in options.parts:
        figures |= math_speed(options.math_calls, options.math_workers)
    if "golds" in options.parts:
        figures |= gold_verdicts(options.data_root, options.math_workers)
    if "reasoning_gym" in options.parts:
        figures |= reasoning_gym_speed(options.math_workers)
    if "programs" in options.parts:
        figures |= program_speed(options.data_root)
    for name, value in figures.items():
        print(f"{name:36} {value:14,.1f}")
    if options.json:
        before = json.loads(options.json.read_text(encoding="utf-8")) if options.json.exists() else {"figures": {}}
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]}
        runs = before.get("runs", {}) | {part: {"command": " ".join(sys.argv), **machine} for part in options.parts}
        write_json(options.json, before | {"runs": runs, "figures": before["figures"] | figures})


if __name__ == "__main__":
    main()
