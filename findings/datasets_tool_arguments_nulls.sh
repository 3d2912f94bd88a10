#!/usr/bin/env bash
# datasets 5.2.0: the same tool calls gain null arguments or not, by how they were loaded.
#
# One expects Dataset.from_list(rows) and load_dataset("json") of the same rows to hold the same: each call keeps its
# own arguments.
# What happens: load_dataset("json") notices that the objects differ and stores them as Json(); from_list makes one
# struct of all keys seen in any row, and each call comes back with every other tool's arguments as None. An explicit
# null and an invented one can no longer be told apart.
# Seen: from_list: {'city': 'Oslo', 'a': None, 'b': None}; from the JSON file: {'city': 'Oslo'}.
# Why it hurts: a chat template prints arguments as JSON, so SFT teaches calls such as weather(city="Oslo", a=null,
# b=null) to a model, and with more tools the nulls outnumber the real arguments. Moving a recipe from a file to a
# list made in Python (a filter, a mixture) changes the training text without a warning.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q datasets==5.2.0 pyarrow==26.0.1 numpy==2.3.5
HF_HUB_OFFLINE=1 HF_HOME="$t/home" "$t/venv/bin/python" - "$t" <<'PY'
import json
import sys

from datasets import Dataset, disable_progress_bars, load_dataset

disable_progress_bars()


def call(name, **arguments):
    function = {"name": name, "arguments": arguments}
    return {"messages": [{"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}]}


def arguments(row):
    return row["messages"][0]["tool_calls"][0]["function"]["arguments"]


rows = [call("weather", city="Oslo"), call("add", a=1, b=2)]
with open(f"{sys.argv[1]}/rows.jsonl", "w") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
listed = [arguments(row) for row in Dataset.from_list(rows)]
loaded = [arguments(row) for row in load_dataset("json", data_files=f"{sys.argv[1]}/rows.jsonl", split="train")]
print("from_list:", listed)
print("from the JSON file:", loaded)
assert listed == [{"city": "Oslo", "a": None, "b": None}, {"city": None, "a": 1, "b": 2}]
assert loaded == [{"city": "Oslo"}, {"a": 1, "b": 2}]
PY
