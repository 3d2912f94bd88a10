"""What compression keeps, on the miniature: order of removal, and accuracy before, after and against controls.

    nanoalign run recipes/miniature.yaml
    nanoalign run recipes/compress-miniature.yaml
    python -m benchmarks.compression runs/compress-miniature --json docs/results/compression.json

Three orders of removal (iterative by MSE, one-shot by MSE, random) are compared by held-out loss against blocks
removed, for all kinds of blocks alike. Then the whole model, the chosen one, and two controls of its shape are measured
on the run's suites, thinking on: as pruned, without any distillation; and with random weights, trained on the same
documents (their cross entropy) for as many tokens as the chosen model got in both of its distillations.
"""

import argparse
import json
import math
import os
import platform
from importlib import metadata
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from rich.console import Console
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from nanoalign.common.files import write_json
from nanoalign.common.intervals import Estimate, proportion
from nanoalign.compress.calibrate import Row, calibration_rows, mean_loss
from nanoalign.compress.depth import Removal, iterative, one_shot
from nanoalign.compress.importance import Scores, choose
from nanoalign.compress.shapes import Widths
from nanoalign.compress.stage import known_errors
from nanoalign.compress.surgery import write_pruned
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.prepared import Prepared
from nanoalign.evaluation.suites import evaluate, load_suite, suite_reward
from nanoalign.graph import stage_seed
from nanoalign.models.loading import load_model, load_tokenizer, resolve, save_model
from nanoalign.models.model_folder import read_config
from nanoalign.recipe.load import load
from nanoalign.rollouts import open_for_eval
from nanoalign.rollouts.base import Mode
from nanoalign.runner import Options, run

RANDOM_ORDERS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of recipes/compress-miniature.yaml")
    parser.add_argument("--removed", type=int, default=6, help="blocks removed at most in the curves")
    parser.add_argument("--only", choices=["depth", "controls"], help="one half")
    parser.add_argument("--json", type=Path, required=True, help="the results, added to what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    before = os.getloadavg()[0]
    found = _read(arguments.json)
    if arguments.only != "controls":
        found["depth"] = depth_curves(arguments.run, arguments.removed)
    if arguments.only != "depth":
        found |= {"models": models(arguments.run, arguments.json)}
    found |= {"machine": machine(before), "seed": load(str(arguments.run / "recipe.yaml")).seed}
    found["figures"] = figures(found)
    write_json(arguments.json, found)
    print(json.dumps(found["figures"], indent=2))


def depth_curves(folder: Path, most: int) -> dict[str, Any]:
    """Held-out loss with 0 to ``most`` blocks removed, by order."""
    recipe = load(str(folder / "recipe.yaml"))
    config = recipe.stages["compressed"]
    model = load_model(recipe.model, "float32", "cpu")
    rows = calibration_rows(
        config.calibration, config.data, Prepared(folder / "compressed.prepared"),
        load_tokenizer(recipe.model).pad_token_id, stage_seed(recipe, "compressed"),
    )  # fmt: skip
    known = known_errors(folder / "compressed/removals.jsonl")
    removal = Removal(model, rows.scoring[: config.calibration.depth_rows], known)
    count = len(model.base_model.layers)
    steps = iterative(removal, ["block"] * count, [(frozenset({"block"}), most)])
    orders = {"iterative": [step.block for step in steps], "one_shot": one_shot(removal, most)}
    for number in range(RANDOM_ORDERS):
        orders[f"random_{number}"] = Random(number).sample(range(count), most)
    curves = {name: [_loss_without(model, order[:n], rows.held_out) for n in range(most + 1)]
              for name, order in orders.items()}  # fmt: skip
    return {"orders": orders, "curves": curves, "rows": len(rows.held_out),
            "errors": [{"block": step.block, "error": step.error} for step in steps]}  # fmt: skip


def _loss_without(model: Any, gone: list[int], rows: Any) -> dict[str, Any]:
    """Nats per trained token, with an interval over the rows (a ratio's: rows hold different numbers of tokens)."""
    layers = model.base_model.layers
    model.base_model.layers = nn.ModuleList(layer for number, layer in enumerate(layers) if number not in gone)
    try:
        losses = [mean_loss(model, [row]) for row in _rows(rows)]
    finally:
        model.base_model.layers = layers
    tokens = [int((row["labels"] != -100).sum()) for row in _rows(rows)]
    total = sum(loss * count for loss, count in zip(losses, tokens)) / sum(tokens)
    spread = math.sqrt(sum((count * (loss - total)) ** 2 for loss, count in zip(losses, tokens))) / sum(tokens)
    spread *= math.sqrt(len(losses) / (len(losses) - 1))
    return Estimate(total, total - 1.96 * spread, total + 1.96 * spread, len(losses)).as_dict()


def _mean(values: list[float]) -> dict[str, Any]:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    return Estimate(mean, mean - 1.96 * spread, mean + 1.96 * spread, len(values)).as_dict()


def _rows(rows: Any) -> list[Row]:
    return [row for row in rows if bool((row["labels"] != -100).any())]


def models(folder: Path, results: Path) -> dict[str, Any]:
    """Accuracy of the whole model, of the chosen one as pruned and as distilled, and of its shape from scratch; each is
    kept in ``results`` as soon as it is there."""
    recipe = load(str(folder / "recipe.yaml"))
    record = json.loads((folder / "compressed/search.json").read_text(encoding="utf-8"))
    row = next(row for row in record["candidates"] if row["name"] == record["chosen"])
    learned = [recipe.stages["compressed"].distill.train, recipe.stages["distilled"].train]
    controls = folder / "controls"
    if not (controls / "pruned").is_dir():
        _write_pruned(recipe, folder, record, row, controls / "pruned")
    found = json.loads(results.read_text(encoding="utf-8")).get("models", {}) if results.exists() else {}
    scores: dict[str, dict[str, list[float]]] = found.get("scores", {})
    steps = sum(train.steps for train in learned)
    for suite, name in product(recipe.stages["verdict"].suites, MODELS):
        if suite not in scores.get(name, {}):
            scratch = controls / "runs/scratch/trained/model"
            places = {"whole": resolve(recipe.model), "pruned": controls / "pruned",
                      "distilled": folder / "distilled/model", "scratch": scratch}  # fmt: skip
            if name == "scratch" and not scratch.is_dir():
                _from_scratch(folder, recipe, steps)
            scores.setdefault(name, {})[suite] = _scores(recipe, places[name], suite)
        found = {
            "shape": row, "whole": record["whole"], "steps": steps,
            "tokens": steps * learned[-1].batch_size * recipe.stages["distilled"].pack.length,
            "scores": scores,
            "accuracy": {name: {suite: proportion(round(sum(each)), len(each)).as_dict()
                                for suite, each in suites.items()} for name, suites in scores.items()},
            "gains": _gains(scores),
        }  # fmt: skip
        write_json(results, {**_read(results), "models": found})
    return found


MODELS = ("whole", "pruned", "distilled", "scratch")
PAIRS = (("distilled", "pruned"), ("distilled", "scratch"), ("distilled", "whole"), ("pruned", "whole"))


def _gains(scores: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Differences in points, task by task on the same tasks, with 95% intervals."""
    return {
        f"{one}_over_{other}": {
            suite: _mean([100 * (a - b) for a, b in zip(scores[one][suite], scores[other][suite], strict=True)])
            for suite in scores[one]
            if suite in scores[other]
        }
        for one, other in PAIRS
        if one in scores and other in scores
    }


def _scores(recipe: Any, place: Path, suite: str) -> list[float]:
    """Each task's score, thinking on, as the recipe's verdict measures it."""
    chat, tokenizer, rollouts = chat_format(recipe.chat), load_tokenizer(place), recipe.stages["verdict"].rollouts
    tasks = load_suite(suite, recipe.suites[suite], recipe.data, None, stage_seed(recipe, "verdict"), chat)
    engine = open_for_eval(rollouts, place, tokenizer, chat, "cpu")
    try:
        result = evaluate(engine, chat, tokenizer, tasks, Mode(True), suite_reward(recipe.suites[suite], {}, "cpu"),
                          rollouts, stage_seed(recipe, "verdict"))  # fmt: skip
    finally:
        engine.close()
    return [float(score >= 0.5) for score in result.scores]


def _from_scratch(folder: Path, recipe: Any, steps: int) -> None:
    """Trains the chosen shape from transformers' initial weights, on the same documents, by their cross entropy."""
    place = folder / "controls/initial"
    torch.manual_seed(recipe.seed)
    shape = folder / "compressed/model"
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(shape), dtype=torch.float32)
    save_model(model, load_tokenizer(shape), place)
    content = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    distilled = content["stages"]["distilled"]
    train = distilled["train"] | {"steps": steps, "epochs": None}
    stage = {"kind": "sft", "from": "base", "data": distilled["data"], "pack": distilled["pack"], "train": train}
    content |= {"name": "scratch", "model": str(place.resolve()), "stages": {"trained": stage}}
    file = folder / "controls/scratch.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    run(load(str(file)), Options(folder / "controls/runs", ignore_code=True), Console())


def _write_pruned(recipe: Any, folder: Path, record: Any, row: Any, place: Path) -> None:
    """The chosen shape as it was cut, from the run's own importance and order of removal."""
    source = resolve(recipe.model)
    shape = read_config(source)
    removal = next(each for each in record["removals"] if each["blocks"] == row["blocks"]
                   and each["attention"] == row["attention_blocks"])  # fmt: skip
    gone = {step["block"] for step in removal["steps"]}
    blocks = [number for number in range(record["whole"]["blocks"]) if number not in gone]
    sizes = Widths(**{key: row[key] for key in Widths.__dataclass_fields__})
    kept = choose(Scores.load(folder / "compressed/importance.safetensors"), shape, blocks, sizes)
    write_pruned(source, kept, sizes, place)


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def figures(found: dict[str, Any]) -> dict[str, float]:
    """Flat figures for the page."""
    flat: dict[str, float] = {}
    if depth := found.get("depth"):
        for name, curve in depth["curves"].items():
            flat |= {f"compression.depth_loss.{name}.{n}": point["value"] for n, point in enumerate(curve)}
    if measured := found.get("models"):
        shape, whole = measured["shape"], measured["whole"]
        flat |= {
            "compression.parameters": shape["parameters"],
            "compression.parameters_kept": shape["parameters"] / whole["parameters"],
            "compression.loss_whole": whole["loss"],
            "compression.loss_pruned": shape["loss"],
        }
        for name, suites in measured["accuracy"].items():
            flat |= {f"compression.{suite}.{name}": score["value"] for suite, score in suites.items()}
        for name, suites in measured["gains"].items():
            for suite, gain in suites.items():
                parts = {"": "value", "_low": "low", "_high": "high"}
                flat |= {f"compression.{suite}.{name}_points{end}": gain[part] for end, part in parts.items()}
    return flat


def machine(load_before: float) -> dict[str, Any]:
    """Where this ran."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "trl", "accelerate")}
    return {"cpus": os.cpu_count(), "load_before": load_before, "load_after": os.getloadavg()[0],
            "python": platform.python_version(), **versions}  # fmt: skip


if __name__ == "__main__":
    main()
