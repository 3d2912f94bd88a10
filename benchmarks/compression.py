"""What compression keeps, on the miniature: order of removal, and accuracy before, after and against controls.

    nanoalign run recipes/miniature.yaml
    nanoalign run recipes/compress-miniature.yaml
    python -m benchmarks.compression runs/compress-miniature --json docs/results/compression.json

Three orders of removal (iterative by MSE, one-shot by MSE, random) are compared by held-out loss against blocks
removed, for all kinds of blocks alike. Then two controls of the run's chosen shape are made and measured on its suites:
as pruned, without any distillation; and with random weights, distilled from the same teacher over as many tokens as
the chosen model got in both of its distillations.
"""

import argparse
import json
import math
import os
import platform
from importlib import metadata
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from rich.console import Console
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from nanoalign.common.files import write_json
from nanoalign.common.intervals import Estimate
from nanoalign.compress.calibrate import Row, calibration_rows, mean_loss
from nanoalign.compress.depth import Removal, iterative, one_shot
from nanoalign.compress.importance import Scores, choose
from nanoalign.compress.shapes import Widths
from nanoalign.compress.stage import known_errors
from nanoalign.compress.surgery import write_pruned
from nanoalign.data_recipes.prepared import Prepared
from nanoalign.graph import stage_seed
from nanoalign.models.loading import load_model, load_tokenizer, resolve, save_model
from nanoalign.models.model_folder import read_config
from nanoalign.recipe.load import load
from nanoalign.runner import Options, run

RANDOM_ORDERS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of recipes/compress-miniature.yaml")
    parser.add_argument("--removed", type=int, default=6, help="blocks removed at most in the curves")
    parser.add_argument("--only", choices=["depth", "controls"], help="one half")
    parser.add_argument("--ignore-code", action="store_true", help="keep controls made by another version of the code")
    parser.add_argument("--json", type=Path, required=True, help="the results, added to what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    before = os.getloadavg()[0]
    found: dict[str, Any] = {}
    if arguments.json.exists():
        found = json.loads(arguments.json.read_text(encoding="utf-8"))
    if arguments.only != "controls":
        found["depth"] = depth_curves(arguments.run, arguments.removed)
    if arguments.only != "depth":
        found["models"] = models(arguments.run, arguments.ignore_code)
    found |= {"machine": machine(before), "seed": load(str(arguments.run / "recipe.yaml")).seed}
    found["figures"] = figures(found)
    write_json(arguments.json, found)
    print(json.dumps(found["figures"], indent=2))


def depth_curves(folder: Path, most: int) -> dict[str, Any]:
    """Held-out loss with 0 to ``most`` blocks removed, by order: mean over rows, with an interval over them."""
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
    """The loss of each row, as a mean with its interval."""
    layers = model.base_model.layers
    model.base_model.layers = nn.ModuleList(layer for number, layer in enumerate(layers) if number not in gone)
    try:
        each: list[float] = [mean_loss(model, [row]) for row in _rows(rows)]
    finally:
        model.base_model.layers = layers
    mean = sum(each) / len(each)
    spread = math.sqrt(sum((loss - mean) ** 2 for loss in each) / (len(each) - 1) / len(each))
    return Estimate(mean, mean - 1.96 * spread, mean + 1.96 * spread, len(each)).as_dict()


def _rows(rows: Any) -> list[Row]:
    return [row for row in rows if bool((row["labels"] != -100).any())]


def models(folder: Path, ignore_code: bool) -> dict[str, Any]:
    """Accuracy by suite, with intervals, of the whole model, the chosen one and the controls."""
    recipe = load(str(folder / "recipe.yaml"))
    record = json.loads((folder / "compressed/search.json").read_text(encoding="utf-8"))
    row = next(row for row in record["candidates"] if row["name"] == record["chosen"])
    batch = recipe.stages["distilled"].train.batch_size
    steps = recipe.stages["compressed"].distill.train.steps + recipe.stages["distilled"].train.steps
    places = {"pruned": folder / "controls/pruned", "scratch": folder / "controls/scratch"}
    if not places["pruned"].is_dir():
        _write_pruned(recipe, folder, record, row, places["pruned"])
    if not places["scratch"].is_dir():
        _write_scratch(recipe, folder / "compressed/model", places["scratch"])
    results = dict(_evaluation(folder)["checkpoints"])
    for name, place in places.items():
        stage = "base" if name == "pruned" else "distilled"
        control = _control(folder, recipe, name, place, stage, steps, ignore_code)
        results[name] = _evaluation(control)["checkpoints"][stage]
    shown = {"base": "whole", "compressed": "briefly_distilled", "distilled": "distilled"}
    return {
        "shape": row, "whole": record["whole"], "steps": steps, "batch": batch,
        "accuracy": {
            shown.get(name, name): {
                suite: {mode: each["score"] for mode, each in modes.items()}
                for suite, modes in checkpoint["suites"].items()
            }
            for name, checkpoint in results.items()
        },
    }  # fmt: skip


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


def _write_scratch(recipe: Any, shape: Path, place: Path) -> None:
    """The same shape with transformers' initial weights."""
    torch.manual_seed(recipe.seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(shape), dtype=torch.float32)
    save_model(model, load_tokenizer(shape), place)


def _control(
    folder: Path, recipe: Any, name: str, place: Path, stage: str, steps: int, ignore_code: bool
) -> Path:  # fmt: skip
    """Runs a recipe of its own on a control, with the run's data, suites and settings; returns the run's folder."""
    content = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    stages = content["stages"]
    distilled = stages["distilled"] | {"from": "base", "teacher": str(resolve(recipe.model))}
    distilled["train"] = distilled["train"] | {"steps": steps, "epochs": None}
    content["stages"] = {"verdict": stages["verdict"] | {"of": [stage]}}
    if stage == "distilled":
        content["stages"]["distilled"] = distilled
    content |= {"name": name, "model": str(place.resolve())}
    file = folder / "controls" / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    run(load(str(file)), Options(folder / "controls/runs", ignore_code=ignore_code), Console())
    return folder / "controls/runs" / name


def _evaluation(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "verdict/evaluation.json").read_text(encoding="utf-8"))
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
            for suite, modes in suites.items():
                for mode, score in modes.items():
                    flat[f"compression.{suite}.{mode}.{name}"] = score["value"]
    return flat


def machine(load_before: float) -> dict[str, Any]:
    """Where this ran."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "trl", "accelerate")}
    return {"cpus": os.cpu_count(), "load_before": load_before, "load_after": os.getloadavg()[0],
            "python": platform.python_version(), **versions}  # fmt: skip


if __name__ == "__main__":
    main()
