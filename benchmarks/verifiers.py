"""Verifier throughput and leaks: IFEval checks a second on one core, math-verify answers a second and memory over time.

Run: ``python benchmarks/verifiers.py [--math-calls 100000] [--json FILE]``. Needs the mirrored IFEval prompts and chats
(``--data-root`` or NANOALIGN_DATA).
"""

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

import psutil

from common.files import write_json
from reward.instructions import CHECKERS, follows
from reward.mathematics import MathVerifier

GROUP = 8
"""Answers to one question of mathematics."""
BATCH = 512


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
    memory is a saw-tooth: the highest of the first fifth stands against the highest of the last."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=os.environ.get("NANOALIGN_DATA", "../shared/data"))
    parser.add_argument("--math-calls", type=int, default=100_000)
    parser.add_argument("--math-workers", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    figures: dict[str, Any] = instruction_speed(options.data_root, answers(options.data_root))
    figures |= math_speed(options.math_calls, options.math_workers)
    figures |= {"load_before": load_before, "load_after": os.getloadavg()[0], "cpus": os.cpu_count()}
    for name, value in figures.items():
        print(f"{name:36} {value:14,.1f}")
    if options.json:
        write_json(options.json, {"command": "python benchmarks/verifiers.py", "figures": figures})


if __name__ == "__main__":
    main()
