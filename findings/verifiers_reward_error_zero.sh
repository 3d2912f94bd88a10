#!/usr/bin/env bash
# verifiers 0.3.1: a reward function with a mistake in it scores 0.0, like a wrong answer.
#
# One expects an exception in a reward function to stop the scoring, or at least to mark the rollout as failed: a mistake
# in the grader says nothing about the answer.
# What happens: Rubric catches every exception, logs one line and goes on with 0.0; the state has no error, and its
# reward and metrics have the form of those of a wrong answer.
# Seen for the right answer "2" (one rollout; a group of two): a correct function 1.0; 1.0 and 1.0. One that reads a key
# that messages do not have 0.0, metrics {'broken': 0.0}, error None, log "Error calling reward function broken: 'text'";
# 0.0 and 0.0.
# Why it hurts: an environment whose grader fails always, or only on some answers (an empty one, a message of tool calls,
# a missing dependency), trains on: right answers that the grader stumbles over are punished, groups get no gradient, and
# the reward curve looks like a hard task.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q verifiers==0.3.1 mcp==1.30.0
"$t/venv/bin/python" - <<'PY'
import asyncio
import logging

import verifiers as vf

lines = []
keep = logging.Handler()
keep.emit = lambda record: lines.append(record.getMessage())


def right(completion, answer):
    return float(completion[-1]["content"] == answer)


def broken(completion, answer):
    return float(completion[-1]["text"] == answer)


def state():
    said = [{"role": "assistant", "content": "2"}]
    asked = [{"role": "user", "content": "1+1?"}]
    return vf.State(prompt=asked, completion=said, answer="2", task="add", info={}, timing=None, trajectory=[])


for function, reward in ((right, 1.0), (broken, 0.0)):
    rubric = vf.Rubric(funcs=[function])
    rubric.logger.addHandler(keep)
    one, group = state(), [state(), state()]
    asyncio.run(rubric.score_rollout(one))
    asyncio.run(rubric.score_group(group))
    rewards = [one["reward"], *(each["reward"] for each in group)]
    print(function.__name__, rewards, one["metrics"], "error:", one.get("error"), "log:", lines)
    assert rewards == [reward] * 3 and one["metrics"] == {function.__name__: reward} and one.get("error") is None
    assert lines == ([] if function is right else ["Error calling reward function broken: 'text'"] * 3)
PY
