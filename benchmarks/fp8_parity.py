"""Does a model learn the same in FP8: the same documents, order and steps as in bf16, loss curves and held-out loss.

    python benchmarks/fp8_parity.py --prepare RECIPE STAGE --tokens FILE.npz                (once, where the data are)
    python benchmarks/fp8_parity.py --tokens FILE.npz --model SPEC [--scratch] --json FILE  (a Hopper GPU; or a CPU with
                                                                                             NANOALIGN_EMULATE_FP8=1)

Trains all weights (fp32 masters, autocast) on packs of an SFT stage's documents, isolated, with the loss on what the
stage trains on: bf16, FP8, and bf16 with the documents in another order, whose gap is what chance does. The held-out
loss is in bf16 for all, of the weights as a stage would save them. Needs no TRL.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.auto import AutoConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from nanoalign.common.files import atomic_file
from nanoalign.models.config import Training
from nanoalign.models.fp8_layers import use_fp8
from nanoalign.models.hybrid import install
from nanoalign.models.known import KNOWN
from nanoalign.models.labels import IGNORED
from nanoalign.models.loading import load_model
from nanoalign.models.loss import causal_loss
from nanoalign.models.packed_attention import packed_inputs
from nanoalign.models.schedules import schedule_factor

HELD_OUT = 64
"""Documents, the last ones."""
Pack = tuple[Tensor, Tensor, list[int]]
"""Token ids and labels (1, T), and the documents' lengths."""


def prepare(recipe: str, stage: str, file: Path, data_root: Path | None, most: int) -> None:
    """Writes the tokens of an SFT stage's documents, in training order, and which are trained on."""
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.models.loading import load_tokenizer
    from nanoalign.recipe.load import load
    from nanoalign.sft.data import prepare_stage

    loaded = load(recipe, data_root=data_root)
    section: Any = loaded.stages[stage]
    chat, folder = chat_format(loaded.chat), file.with_suffix("")
    tokenizer = load_tokenizer(loaded.model)
    found = prepare_stage(section, loaded.data[section.data], chat, tokenizer, folder, data_root, loaded.seed)
    examples = [found.tokens(number) for number in range(min(len(found), most))]
    np.savez_compressed(
        file,
        ids=np.concatenate([ids for ids, _ in examples]).astype(np.uint16),
        trained=np.packbits(np.concatenate([trained for _, trained in examples])),
        lengths=np.array([len(ids) for ids, _ in examples], dtype=np.int32),
    )
    print(f"{file}: {len(examples)} documents, {sum(len(ids) for ids, _ in examples):,} tokens")


class Documents:
    """Documents out of such a file."""

    def __init__(self, file: Path) -> None:
        stored = np.load(file)
        self.ids = torch.from_numpy(stored["ids"].astype(np.int64))
        trained = torch.from_numpy(np.unpackbits(stored["trained"])[: len(self.ids)].astype(bool))
        self.labels = self.ids.masked_fill(~trained, IGNORED)
        self.ends = np.cumsum(stored["lengths"])
        self.starts = self.ends - stored["lengths"]

    def __len__(self) -> int:
        return len(self.ends)

    def pack(self, chosen: list[int]) -> Pack:
        """These documents end to end."""
        spans = [slice(self.starts[number], self.ends[number]) for number in chosen]
        ids, labels = (torch.cat([tokens[span] for span in spans])[None] for tokens in (self.ids, self.labels))
        return ids, labels, [int(span.stop - span.start) for span in spans]

    def packs(self, length: int, seed: int) -> Iterator[Pack]:
        """Packs of up to ``length`` tokens without end, all but the held-out ones in an order drawn anew each time."""
        random, chosen, filled = np.random.default_rng(seed), [], 0
        while True:
            for number in random.permutation(len(self) - HELD_OUT):
                size = int(self.ends[number] - self.starts[number])
                if filled + size > length and chosen:
                    yield self.pack(chosen)
                    chosen, filled = [], 0
                if size <= length:
                    chosen.append(int(number))
                    filled += size


def random_model(spec: str) -> Any:
    """A known model's shape with weights drawn from seed 0."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**KNOWN[spec]))
    install(model)
    return model


def loss_of(model: Any, pack: Pack, device: torch.device, items: int | None = None) -> Tensor:
    ids, labels, lengths = pack
    inputs = {"input_ids": ids.to(device), **packed_inputs(lengths, device=device)}
    with torch.autocast(device.type, torch.bfloat16):
        return causal_loss(model, labels.to(device), items, **inputs)


def counted(pack: Pack) -> int:
    """Tokens that the loss is of."""
    return int((pack[1][:, 1:] != IGNORED).sum())


@torch.no_grad()
def held_out(model: Any, documents: Documents, device: torch.device) -> float:
    """Nats per trained token of the held-out documents, each alone."""
    model.eval()
    total, items = 0.0, 0
    for number in range(len(documents) - HELD_OUT, len(documents)):
        if tokens := counted(pack := documents.pack([number])):
            total += float(loss_of(model, pack, device)) * tokens
            items += tokens
    model.train()
    return total / items


def train(options: argparse.Namespace, precision: str, order: int) -> dict[str, Any]:
    """One training; its losses step by step, and the held-out loss before and after."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    documents = Documents(options.tokens)
    model = random_model(options.model) if options.scratch else load_model(options.model, "float32")
    model.to(device).train()
    layers = use_fp8(model) if precision == "fp8" else []
    recipe = Training(learning_rate=options.learning_rate, steps=options.steps)
    decayed = [weight for weight in model.parameters() if weight.dim() > 1]
    others = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=device.type == "cuda")
    packs, losses, first = documents.packs(options.length, order), [], held_out(model, documents, device)
    began = time.perf_counter()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule_factor(recipe, step, options.steps)
        batch = [next(packs) for _ in range(options.batch)]
        items, total = sum(map(counted, batch)), 0.0
        for pack in batch:
            loss = loss_of(model, pack, device, items)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        if step % 20 == 0:
            print(f"{precision} order {order} step {step}: {total:.4f}", flush=True)
    seconds = time.perf_counter() - began
    last = held_out(model, documents, device)
    return {"losses": losses, "held_out": [first, last], "seconds": seconds, "fp8_layers": len(layers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", nargs=2, metavar=("RECIPE", "STAGE"))
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--model", help="folder or spec")
    parser.add_argument("--scratch", action="store_true", help="from random weights of its shape")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=4, help="packs in a step")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--runs", nargs="+", default=["bf16:17", "fp8:17", "bf16:18"], help="precision:order")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.prepare:
        prepare(*options.prepare, options.tokens, options.data_root, options.documents)
        return
    settings = {key: str(value) for key, value in vars(options).items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    results: dict[str, Any] = {"setting": settings | {"torch": torch.__version__, "device": device}, "figures": {}}
    for run in options.runs:
        precision, _, order = run.partition(":")
        results[run] = train(options, precision, int(order))
        ends = {name: results[name]["held_out"][1] for name in options.runs if name in results}
        base = ends.get("bf16:17")
        for name, value in ends.items():
            if base and name != "bf16:17":
                key = "fp8.loss_gap_relative" if name == "fp8:17" else f"{name}.gap_relative"
                results["figures"][key] = value / base - 1
        print(run, results[run]["held_out"], f"{results[run]['seconds']:.0f} s", results["figures"], flush=True)
        if options.json:
            with atomic_file(options.json) as temporary:
                temporary.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
