"""Distillation beside TRL's trainers: tokens per second and peak memory, same models, same documents, in one run.

    python benchmarks/distill.py [--shape llama hybrid] [--data whole mixed] [--rounds 2] [--limit 500] [--json FILE]

A student learns a teacher's distributions (forward KL at temperature 1, every token, AdamW, bf16 autocast, a bf16
teacher on the same GPU) over a vocabulary of 131,072, random weights. `whole` documents are 8,192 tokens each: nothing
can be packed. `mixed` ones are exponential with 1,024 on average and 8,192 at most: ours are packed to 8,192 with
isolation, TRL's are padded, batches of similar lengths together. Peers, both of TRL:

- gkd: its off-policy trainer, experimental GKDTrainer with lmbda 0 and beta 0. GOLD's loss works on whole logits too.
- distillation: DistillationTrainer, which has a tiled loss and is on-policy; it is given the documents in place of what
  it would generate. No setting of TRL's does this: it is the best that its code could do.

Each trainer's batch is the best of those in --batches that fit, without gradient checkpointing. Measurements are
processes of their own, taken in turn --rounds times; the best of each counts. `distill.ratio_vs_trl` is the whole
documents' ratio to gkd with llama, `..._kernel` the one to distillation. --tiny tries all of it on a CPU.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, NemotronHConfig, NemotronHForCausalLM, TrainerCallback

from nanoalign.common.files import atomic_file

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY, LENGTH, MEAN, WARM_UP = 131072, 8192, 1024, 3
LLAMA = {
    "student": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                "num_key_value_heads": 3},
    "teacher": {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
                "num_key_value_heads": 5},
}  # fmt: skip
"""SmolLM2's 135M and 360M, but for the vocabulary."""
HYBRID = {
    "student": {"hidden_size": 1024, "intermediate_size": 3072, "hybrid_override_pattern": "M-M-M*-M-M-",
                "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64, "mamba_num_heads": 24,
                "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128},
    "teacher": {"hidden_size": 1024, "intermediate_size": 4096, "hybrid_override_pattern": "M-M-M*-M-M-M-M*-",
                "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64, "mamba_num_heads": 32,
                "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128},
}  # fmt: skip
"""Small ones of Nemotron-H's make."""
TINY_LLAMA = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 1}  # fmt: skip
TINY_HYBRID = {"hidden_size": 32, "intermediate_size": 64, "hybrid_override_pattern": "M-*-", "num_attention_heads": 2,
               "num_key_value_heads": 1, "head_dim": 32, "mamba_num_heads": 2, "mamba_head_dim": 32, "n_groups": 1,
               "ssm_state_size": 16, "chunk_size": 16}  # fmt: skip
TRAINERS = ("ours", "gkd", "distillation")


def build(shape: str, role: str, vocabulary: int, tiny: bool) -> Any:
    """A model with random weights, in fp32."""
    torch.manual_seed(0 if role == "student" else 1)
    if shape == "llama":
        sizes = TINY_LLAMA if tiny else LLAMA[role]
        return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, max_position_embeddings=LENGTH, **sizes))
    return NemotronHForCausalLM(NemotronHConfig(vocab_size=vocabulary, **(TINY_HYBRID if tiny else HYBRID[role])))


def documents(data: str, total: int, length: int, mean: int, vocabulary: int) -> list[list[int]]:
    """Random token ids, about ``total`` of them, no document longer than ``length``."""
    random, held, found = Random(0), 0, []
    while held < total:
        size = length if data == "whole" else min(length, 16 + round(random.expovariate(1 / mean)))
        found.append([random.randrange(3, vocabulary) for _ in range(size)])
        held += size
    return found


class Clock(TrainerCallback):
    """The time of every optimizer step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


class Counted:
    """A collator that notes how many tokens of each batch are trained: all but each document's first."""

    def __init__(self, collate: Any, tokens: Any) -> None:
        self.collate, self.tokens = collate, tokens
        self.seen: list[int] = []

    def __call__(self, items: Sequence[Any]) -> Any:
        self.seen.append(sum(map(self.tokens, items)))
        return self.collate(items)


def ours(options: argparse.Namespace, docs: list[list[int]], student: Any, teacher: Any, tokenizer: Any) -> Any:
    """The stage's trainer."""
    from nanoalign.common.stage import StageLog
    from nanoalign.data_recipes.tokenize import Example
    from nanoalign.models.config import MeasuredTraining
    from nanoalign.models.distillation import Divergence, Teacher
    from nanoalign.models.hybrid import install
    from nanoalign.models.packing import pack, singly
    from nanoalign.sft.collate import Collator, gather
    from nanoalign.sft.distill_trainer import DistillTrainer
    from nanoalign.sft.trainer import make_trainer, sft_arguments

    install(student)
    install(teacher)
    held = gather(Example(ids, [1] * len(ids)) for ids in docs)
    train = MeasuredTraining(learning_rate=1e-5, batch_size=options.batch, steps=options.steps,
                        dtype="float32" if options.tiny else "bfloat16")  # fmt: skip
    collator = Collator(held, pack(held.lengths, options.length), True, tokenizer.pad_token_id)
    none = gather([])
    arguments = sft_arguments(train, options.folder, collator, "cpu" if options.tiny else "cuda", 0)
    arguments.save_strategy = "no"
    learn = partial(DistillTrainer, teacher=Teacher(teacher, arguments.device), divergence=Divergence())
    trainer = make_trainer(student, tokenizer, arguments, train, collator,
                           Collator(none, singly(none.lengths), False, 0), StageLog(options.folder), learn)  # fmt: skip
    step, counted = trainer.compute_loss, Counted(None, int)

    def compute_loss(model: Any, inputs: Any, **how: Any) -> Any:
        counted.seen.append(int((inputs["labels"] != -100).sum()))
        return step(model, inputs, **how)

    trainer.compute_loss, trainer.counted = compute_loss, counted
    return trainer


def trl_settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "output_dir": str(options.folder), "max_steps": options.steps, "per_device_train_batch_size": options.batch,
        "learning_rate": 1e-5, "bf16": not options.tiny, "use_cpu": options.tiny, "gradient_checkpointing": False,
        "save_strategy": "no", "report_to": [], "logging_steps": 1, "disable_tqdm": True, "max_grad_norm": 1.0,
        "remove_unused_columns": False, "seed": 0,
    }  # fmt: skip


def gkd(options: argparse.Namespace, docs: list[list[int]], student: Any, teacher: Any, tokenizer: Any) -> Any:
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    def collate(items: Sequence[Any]) -> dict[str, torch.Tensor]:
        width = max(len(item["input_ids"]) for item in items)
        ids, mask = (torch.zeros(len(items), width, dtype=torch.int64) for _ in range(2))
        for row, item in enumerate(items):
            ids[row, : len(item["input_ids"])] = torch.tensor(item["input_ids"])
            mask[row, : len(item["input_ids"])] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    arguments = GKDConfig(**trl_settings(options), lmbda=0.0, beta=0.0, temperature=1.0, seq_kd=False, max_length=None,
                          train_sampling_strategy="group_by_length")  # fmt: skip
    rows = Dataset.from_dict({"input_ids": docs, "length": [len(ids) for ids in docs]})
    collator = Counted(collate, lambda item: len(item["input_ids"]) - 1)
    return GKDTrainer(model=student, teacher_model=teacher, args=arguments, data_collator=collator, train_dataset=rows,
                      processing_class=tokenizer)  # fmt: skip


def distillation(options: argparse.Namespace, docs: list[list[int]], student: Any, teacher: Any, tokenizer: Any) -> Any:
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    class Offline(DistillationTrainer):
        """Reads its completions from the documents: a prompt of one token, and the rest."""

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            held = [docs[int(item["prompt"])] for item in inputs]
            self.data_collator.seen.append(sum(map(len, held)) - len(held))
            width, device = max(map(len, held)) - 1, self.accelerator.device
            ids, mask = (torch.zeros(len(held), width, dtype=torch.int64) for _ in range(2))
            for row, each in enumerate(held):
                ids[row, : len(each) - 1] = torch.tensor(each[1:])
                mask[row, : len(each) - 1] = 1
            first = torch.tensor([[each[0]] for each in held])
            batch = {"prompt_ids": first, "prompt_mask": torch.ones_like(first), "completion_ids": ids,
                     "completion_mask": mask, "num_items_in_batch": mask.sum()}  # fmt: skip
            return {name: tensor.to(device) for name, tensor in batch.items()}

    arguments = DistillationConfig(**trl_settings(options), beta=0.0, temperature=1.0, shuffle_dataset=False)
    order = sorted(
        range(len(docs)), key=lambda number: len(docs[number])
    )  # batches of similar lengths, in random order
    groups = [order[start : start + options.batch] for start in range(0, len(order), options.batch)]
    Random(0).shuffle(groups)
    rows = Dataset.from_dict({"prompt": [str(number) for group in groups for number in group]})
    trainer = Offline(model=student, teacher_model=teacher, args=arguments, train_dataset=rows,
                      processing_class=tokenizer)  # fmt: skip
    trainer.data_collator = Counted(trainer.data_collator, lambda item: 0)
    return trainer


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One trainer's steps in this process."""
    from nanoalign.models.loading import load_tokenizer

    vocabulary = 512 if options.tiny else VOCABULARY
    per_step = options.batch * options.length
    docs = documents(options.data, (options.steps + 2) * per_step, options.length, options.mean, vocabulary)
    device, dtype = ("cpu", torch.float32) if options.tiny else ("cuda", torch.bfloat16)
    student = build(options.shape, "student", vocabulary, options.tiny)
    teacher = build(options.shape, "teacher", vocabulary, options.tiny).to(device=device, dtype=dtype).eval()
    trainer = globals()[options.trainer](options, docs, student, teacher, load_tokenizer("builtin:miniature-base"))
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    seen = [tokens for tokens in getattr(trainer, "counted", trainer.data_collator).seen if tokens]
    tokens, seconds = sum(seen[WARM_UP : len(clock.ends)]), clock.ends[-1] - clock.ends[WARM_UP - 1]
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return {"tokens_per_s": tokens / seconds, "peak_gb": peak / 1e9, "loss": losses[0], "batch": options.batch,
            "steps": len(clock.ends) - WARM_UP}  # fmt: skip


def child(options: argparse.Namespace, case: dict[str, Any], left: float) -> dict[str, Any]:
    """A measurement in a process of its own; what it said last where it failed."""
    command = [sys.executable, __file__, "--inside", json.dumps(case), *(["--tiny"] if options.tiny else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                   "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=max(1, left), env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": "out of time"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()
        return {"failed": next((line for line in reversed(said) if "Error" in line), said[-1] if said else "")[:300]}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def figures_of(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The best of each trainer in each case, and ratios to TRL's."""
    best: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for run in runs:
        if "failed" not in run:
            case = best.setdefault((run["shape"], run["data"]), {})
            if run["tokens_per_s"] > case.get(run["trainer"], {"tokens_per_s": 0})["tokens_per_s"]:
                case[run["trainer"]] = run
    figures: dict[str, float] = {}
    for (shape, data), case in best.items():
        for trainer, run in case.items():
            figures |= {f"{shape}.{data}.{trainer}.{name}": run[name] for name in ("tokens_per_s", "peak_gb", "batch")}
            if trainer != "ours" and "ours" in case:
                mine = case["ours"]
                figures[f"{shape}.{data}.ratio_vs_{trainer}"] = mine["tokens_per_s"] / run["tokens_per_s"]
                figures[f"{shape}.{data}.memory_vs_{trainer}"] = mine["peak_gb"] / run["peak_gb"]
    for name, trainer in (("distill.ratio_vs_trl", "gkd"), ("distill.ratio_vs_trl_kernel", "distillation")):
        if (ratio := figures.get(f"llama.whole.ratio_vs_{trainer}")) is not None:
            figures[name] = ratio
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=["llama", "hybrid"], choices=["llama", "hybrid"])
    parser.add_argument("--data", nargs="+", default=["whole", "mixed"], choices=["whole", "mixed"])
    parser.add_argument("--trainer", nargs="+", default=[*TRAINERS], choices=TRAINERS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4], help="sequences in a step, tried in turn")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=13, help="three of them warm up")
    parser.add_argument("--limit", type=float, default=500, help="seconds; what is not measured by then is left out")
    parser.add_argument("--json", type=Path, default=Path("distill.json"))
    parser.add_argument("--tiny", action="store_true", help="on a CPU")
    parser.add_argument("--inside", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        found = measure(
            argparse.Namespace(**{**options.inside, "folder": Path(options.inside["folder"])}, tiny=options.tiny)
        )
        print(json.dumps(found), flush=True)
        return
    end, runs = time.monotonic() + options.limit, []
    length, mean = (128, 32) if options.tiny else (LENGTH, MEAN)
    first = product(options.shape, options.data, options.batches, options.trainer)
    cases = [*first]
    for number in range(options.rounds):
        for shape, data, batch, trainer in cases:
            tried = [run for run in runs if (run["shape"], run["data"], run["trainer"]) == (shape, data, trainer)]
            works = [run for run in tried if "failed" not in run]
            if number and (not works or max(works, key=lambda run: run["tokens_per_s"])["batch"] != batch):
                continue  # later rounds: each trainer's best batch only
            if not number and any("failed" in run for run in tried):
                continue  # a larger batch does not fit either
            case = {"shape": shape, "data": data, "trainer": trainer, "batch": batch, "steps": options.steps}
            left = end - time.monotonic()
            if left < 5:
                continue
            folder = options.json.resolve().parent / "distill-runs"
            inside = {**case, "length": length, "mean": mean, "folder": str(folder)}
            runs.append({**case, **child(options, {**inside, "folder": str(folder)}, left)})
            print(json.dumps(runs[-1]), flush=True)
            setting = {"torch": torch.__version__, "device": "cpu" if options.tiny else torch.cuda.get_device_name(0),
                       "vocabulary": 512 if options.tiny else VOCABULARY, "length": length}  # fmt: skip
            with atomic_file(options.json) as file:
                file.write_text(json.dumps({"setting": setting, "figures": figures_of(runs), "runs": runs}, indent=1))
    for name, value in figures_of(runs).items():
        print(f"{name:44} {value:.6g}")


if __name__ == "__main__":
    main()
