#!/usr/bin/env bash
# reasoning-gym 0.1.25: four verifiers give full marks to one constant answer, whatever the task.
#
# One expects score_answer to compare the answer with the task's own, so that a constant earns about what guessing
# earns.
# What happens:
#   game_of_life_halting compares bool(text) with bool(text), and bool("False") is True: any non-empty text earns 1;
#   complex_arithmetic takes min(1.0, exp(-distance)), and min(1.0, nan) is 1.0: "nan" earns 1;
#   puzzle24 asks for four numbers within the config's range and the value 24, not for the task's numbers;
#   coin_flip's credit for a common prefix is divided by the shorter text: "0" is a full prefix of every "0.…".
# Seen (share of 12 tasks with the score 1.0): game_of_life_halting "no idea" 12/12, complex_arithmetic "nan" 12/12,
# puzzle24 "6*4*1*1" 12/12, coin_flip "0" 11/12 (the twelfth answer is 1); none of these is the tasks' answer.
# Why it hurts: in reinforcement learning with verified rewards the policy finds the constant, the reward curve goes
# to its maximum and nothing was learned; within a group all rewards are then equal and the gradient is zero.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q reasoning-gym==0.1.25 sympy==1.14.0
"$t/venv/bin/python" - <<'PY'
import reasoning_gym

for name, constant, least in (
    ("game_of_life_halting", "no idea", 12),
    ("complex_arithmetic", "nan", 12),
    ("puzzle24", "6*4*1*1", 12),
    ("coin_flip", "0", 11),
):
    tasks = list(data := reasoning_gym.create_dataset(name, size=12, seed=3))
    full = sum(data.score_answer(constant, task) == 1.0 for task in tasks)
    print(f"{name}: {constant!r} earns 1.0 on {full} of 12; the first answers are {[x['answer'] for x in tasks[:4]]}")
    assert len({x["answer"] for x in tasks}) > 1 and constant not in {x["answer"] for x in tasks}
    assert full >= least, (name, full)
PY
