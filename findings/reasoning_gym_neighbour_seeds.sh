#!/usr/bin/env bash
# reasoning-gym 0.1.25: data sets of neighbouring seeds are the same tasks, shifted by one.
#
# One expects two seeds to give two unrelated data sets, as with any other generator: seed 1 to train, seed 2 to test.
# What happens: entry i is drawn from Random(seed + i), so entry i + 1 of seed 1 is entry i of seed 2. Two data sets of
# n tasks whose seeds lie d apart share n - d of them.
# Seen (100 tasks each, seeds 1 and 2): questions and answers of [1:] and [:-1] are equal for chain_sum, countdown,
# leg_counting, maze, sudoku, knights_knaves and arc_agi, 99 shared tasks; seeds 1 and 1001 share none.
# Why it hurts: a test set of seed 2 (or 43 beside 42) was trained on to 99 %, and a sweep over seeds 0, 1, 2 measures the
# same tasks three times: its spread says nothing about the spread over tasks. No error or warning tells.
# Seeds must lie further apart than the data sets are long.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q reasoning-gym==0.1.25
"$t/venv/bin/python" - <<'PY'
import reasoning_gym


def pairs(name, seed):
    return [(x["question"], x["answer"]) for x in reasoning_gym.create_dataset(name, seed=seed, size=100)]


for name in ("chain_sum", "countdown", "leg_counting", "maze", "sudoku", "knights_knaves", "arc_agi"):
    train, test, far = (pairs(name, seed) for seed in (1, 2, 1001))
    shared = [len(set(train) & set(other)) for other in (test, far)]
    print(f"{name}: shifted by one equal: {train[1:] == test[:-1]}; shared with seed 2 and seed 1001: {shared}")
    assert train[1:] == test[:-1] and shared == [99, 0], (name, shared)
PY
