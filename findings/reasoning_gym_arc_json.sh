#!/usr/bin/env bash
# reasoning-gym 0.1.25: arc_agi and rearc deny their own gold answer once the task has been through JSON.
#
# One expects entries (plain dicts of text, numbers and grids) to survive a JSONL file, as other tasks do: the gold
# answer of a task read back scores 1.
# What happens: the grid in metadata["output"] is a tuple of tuples, JSON makes it a list of lists, and score_answer
# compares it with a tuple by ==, which is never equal. The score is then 0.05, the credit for "a grid, but another
# one".
# Seen: arc_agi fresh [1.0, 1.0, 1.0, 1.0], from JSON [0.05, 0.05, 0.05, 0.05]; rearc the same; basic_arithmetic 1.0
# both ways.
# Why it hurts: tasks are made once and stored as JSONL or Arrow for training. Every correct answer then earns exactly
# what a wrong grid earns, no error is raised, and the task looks merely hard.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q reasoning-gym==0.1.25
"$t/venv/bin/python" - <<'PY'
import json

import reasoning_gym

for name in ("basic_arithmetic", "arc_agi", "rearc"):
    data = reasoning_gym.create_dataset(name, size=4, seed=3)
    fresh = [data.score_answer(task["answer"], task) for task in data]
    stored = [data.score_answer(task["answer"], json.loads(json.dumps(task))) for task in data]
    print(f"{name}: fresh {fresh}, from JSON {stored}")
    assert fresh == [1.0] * 4
    assert stored == fresh if name == "basic_arithmetic" else max(stored) < 0.1, (name, stored)
PY
