#!/usr/bin/env bash
# bfcl-eval 2026.3.23: multi_turn_checker denies right answers after a wrong one to the same task.
#
# One expects a checker that is given the task with its initial state to start from that state, so that a verdict depends
# on the answer alone.
# What happens: the simulators stay in the module's globals under model name, task id and class. A second check with the
# same names goes on from the state the first one left: the reference's and the model's simulators differ before the
# first call of the second answer.
# Seen (200 tasks of multi_turn_base, each with its own reference answer): under a fresh name 200 are valid. The same
# answers after one that lacks the last call of every longer turn: of the 163 tasks where that one was invalid, 97 right
# answers are now invalid, and 66 valid. A right answer after a right one passes, so a simple repeat does not show it.
# Why it hurts: as a reward for several rollouts per task, or for pass@k, everything after the first wrong rollout is
# partly noise, and verdicts depend on the order. An evaluation with one answer per model and task does not meet it.
# A name of its own per check (model_name) avoids it, at the price of simulators that stay in memory.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0
cd "$t"
"$t/venv/bin/python" - <<'PY'
import json
from collections import Counter
from pathlib import Path

import bfcl_eval
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker

data = Path(bfcl_eval.__file__).parent / "data"
name = "BFCL_v4_multi_turn_base.json"
tasks = [json.loads(line) for line in (data / name).read_text().splitlines()]
golds = [json.loads(line)["ground_truth"] for line in (data / "possible_answer" / name).read_text().splitlines()]


def valid(task, gold, turns, model):
    return multi_turn_checker([[calls] for calls in turns], gold, task, "multi_turn_base", model)["valid"]


seen = Counter()
for task, gold in zip(tasks, golds, strict=True):
    short = [calls[:-1] or calls for calls in gold]
    fresh = valid(task, gold, gold, "fresh")
    wrong = not valid(task, gold, short, "shared")
    seen[fresh, wrong, valid(task, gold, gold, "shared")] += 1
for (fresh, wrong, after), count in sorted(seen.items()):
    print(f"{count}: right answer fresh {fresh}; short answer denied {wrong}; right answer after it {after}")
assert all(fresh for fresh, _, _ in seen) and seen[True, False, False] == 0
assert seen[True, True, False] == 97 and seen[True, True, True] == 66, seen
PY
