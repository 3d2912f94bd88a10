"""transformers' own Mamba-2 forward beside this suite's path, on the miniature: training and generation.

    python benchmarks/hybrid_path.py --threads 2 [--json FILE]

Tokens per second of wall time, and of process time divided by the threads (what an idle machine would give, where
others share this one).
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import NemotronHForCausalLM

from nanoalign.models.hybrid import install
from nanoalign.models.miniature import miniature_config

VOCAB = 2048


def rate(work: Callable[[], None], tokens: int, rounds: int, threads: int) -> tuple[float, float]:
    """Tokens per second by the wall clock and by process time, best of ``rounds`` after a warm-up."""
    work()
    walls, processes = [], []
    for _ in range(rounds):
        wall, process = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        processes.append((time.process_time() - process) / threads)
    return tokens / min(walls), tokens / min(processes)


def train(model: NemotronHForCausalLM, batch: int, length: int) -> Callable[[], None]:
    ids = torch.randint(0, VOCAB, (batch, length))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        model.train()
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def decode(model: NemotronHForCausalLM, batch: int, tokens: int) -> Callable[[], None]:
    ids = torch.randint(0, VOCAB, (batch, 16))

    def generate() -> None:
        model.eval()
        model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)

    return generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    model = NemotronHForCausalLM(miniature_config(VOCAB, eos_token_id=0))
    figures: dict[str, float] = {"parameters": sum(weight.numel() for weight in model.parameters())}
    for name in ("transformers", "ours"):
        if name == "ours":
            install(model)
        batch, length, rounds = (8, 512, 4) if name == "ours" else (2, 256, 2)
        wall, process = rate(train(model, batch, length), batch * length, rounds, arguments.threads)
        figures |= {f"train.{name}.tokens_per_s": wall, f"train.{name}.tokens_per_process_s": process}
        wall, process = rate(decode(model, 64, 24), 64 * 24, 2, arguments.threads)
        figures |= {f"generate.{name}.tokens_per_s": wall, f"generate.{name}.tokens_per_process_s": process}
    for phase in ("train", "generate"):
        for clock in ("tokens_per_s", "tokens_per_process_s"):
            theirs, ours = (figures[f"{phase}.{name}.{clock}"] for name in ("transformers", "ours"))
            figures[f"{phase}.ratio.{clock}"] = ours / theirs
            print(f"{phase:9} {clock:22} transformers {theirs:8.0f}   ours {ours:8.0f}   ratio {ours / theirs:5.1f}")
    if arguments.json:
        setting = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.processor(),
        }
        arguments.json.write_text(json.dumps({"setting": setting | vars(arguments), "figures": figures}, default=str))


if __name__ == "__main__":
    main()
