"""Packed documents against each alone, over random packs and every architecture that packs.

    python benchmarks/isolation.py [--only NAME ...] [--packs 40] [--dtype bfloat16] [--gain 1] [--json FILE]

Random models of two to four layers of each kind read packs of 2 to 12 documents of 1 to 700 tokens; compared are the
next tokens' log-probabilities in nats with

- alone: each document in a batch of its own length. Products have other shapes there, and round otherwise.
- same_shape: each document at the front of a batch of the pack's length, behind it other documents of random tokens.
  Shapes are the pack's, so what differs is isolation or a kernel that computes by place.
- plain: alone against the pack as one text, the contrast: what a leak looks like.

Of the first packs also the gradients of the summed log-probabilities, by all weights together and by the embedded
tokens, both as the norm of the difference over the norm, the largest of these packs. repeat is the pack once more: what
atomics change between two runs.
"""

import argparse
import sys
import time
import traceback
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    BambaConfig,
    FalconH1Config,
    GraniteMoeHybridConfig,
    LlamaConfig,
    NemotronHConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from nanoalign.common.files import write_json
from nanoalign.models.hybrid import install
from nanoalign.models.isolation import relative_difference
from nanoalign.models.packed_attention import packed_inputs

ARCHITECTURES = ("llama", "qwen3", "bamba", "granitemoehybrid", "falcon_h1", "nemotron_h")
VOCABULARY, DOCUMENTS, LONGEST = 1024, (2, 12), 700
Gradients = tuple[Tensor, list[Tensor]]
"""Of the embedded tokens (T, hidden) and of the weights, in fp32."""


def configuration(name: str, hidden: int) -> PreTrainedConfig:
    """Mamba heads of 64 or 80 channels with a state of 128, attention heads of up to 64."""
    heads = max(2, hidden // 64)
    shared: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": 3 * hidden, "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 4), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "tie_word_embeddings": False,
    }  # fmt: skip
    mamba: dict[str, Any] = {
        "mamba_n_heads": 2 * hidden // 64, "mamba_d_head": 64, "mamba_n_groups": 2, "mamba_d_state": 128,
        "mamba_chunk_size": 128, "mamba_expand": 2,
    }  # fmt: skip
    match name:
        case "nemotron_h":
            return NemotronHConfig(
                **shared, hybrid_override_pattern="M-M*-M-M*-", head_dim=hidden // heads, n_groups=2, chunk_size=128,
                mamba_num_heads=2 * hidden // 64, mamba_head_dim=80, ssm_state_size=128, conv_kernel=4,
            )  # fmt: skip
        case "bamba":
            return BambaConfig(**shared, **mamba, num_hidden_layers=5, attn_layer_indices=[1, 3])
        case "granitemoehybrid":
            return GraniteMoeHybridConfig(
                **shared, **mamba, num_hidden_layers=5, layer_types=[*["mamba", "attention"] * 2, "mamba"],
                shared_intermediate_size=3 * hidden, num_local_experts=0, position_embedding_type="rope",
            )  # fmt: skip
        case "falcon_h1":  # both kinds in every layer
            return FalconH1Config(**shared, **mamba, num_hidden_layers=3, mamba_d_ssm=2 * hidden, ssm_in_multiplier=0.8)
        case "llama":
            return LlamaConfig(**shared, num_hidden_layers=4)
        case "qwen3":
            return Qwen3Config(**shared, num_hidden_layers=4, head_dim=hidden // heads)
    raise ValueError(name)


def build(name: str, hidden: int, dtype: torch.dtype, device: torch.device, gain: float | None) -> PreTrainedModel:
    """transformers' random weights; with ``gain`` matrices of variance gain^2 / inputs, so that every layer weighs as
    much as the residual stream and log-probabilities spread by about gain nats. Mamba's own vectors are drawn wide."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configuration(name, hidden))
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            if parameter.endswith((".D", "dt_bias", "A_log", "conv1d.bias")):
                weight.add_(torch.randn_like(weight))
            elif weight.dim() == 2 and gain is not None:
                weight.normal_(std=gain * weight.shape[1] ** -0.5)
    model.to(device, dtype)
    install(model, kernels="triton" if device.type == "cuda" else "torch")
    return model.eval()


def draw(random: Random, longest: int) -> tuple[list[int], Tensor]:
    """A pack: its documents' lengths, one of two tokens or more, and its tokens (1, T)."""
    lengths = [random.randint(1, longest) for _ in range(random.randint(*DOCUMENTS))]
    lengths[0] = max(2, lengths[0])
    return lengths, tokens(random, sum(lengths))


def tokens(random: Random, count: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (1, count), generator=torch.Generator().manual_seed(random.getrandbits(62)))


def cut(random: Random, total: int, longest: int) -> list[int]:
    """Lengths that fill ``total`` tokens."""
    cuts = [0]
    while cuts[-1] < total:
        cuts.append(min(total, cuts[-1] + random.randint(1, longest)))
    return [end - start for start, end in pairwise(cuts)]


def logprobs(model: PreTrainedModel, ids: Tensor, lengths: list[int], isolate: bool = True) -> tuple[Tensor, Tensor]:
    """Of each next token (T - 1,), in fp32, and the embedded tokens (1, T, hidden), from which gradients flow."""
    ids = ids.to(model.device)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_(torch.is_grad_enabled())
    logits = model(inputs_embeds=embedded, **packed_inputs(lengths, isolate, device=model.device)).logits
    return logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1), embedded


def gradients(model: PreTrainedModel, found: Tensor, embedded: Tensor) -> Gradients:
    """Of the summed log-probabilities ``found``."""
    weights = [weight for weight in model.parameters() if weight is not model.get_input_embeddings().weight]
    first, *rest = torch.autograd.grad(found.sum(), [embedded, *weights], allow_unused=True)
    return first[0].float(), [
        torch.zeros_like(weight, dtype=torch.float32) if grad is None else grad.float()
        for weight, grad in zip(weights, rest)
    ]


@dataclass
class Gap:
    """Absolute differences so far."""

    most: float = 0.0
    total: float = 0.0
    count: int = 0
    equal: int = 0

    def add(self, a: Tensor, b: Tensor) -> None:
        gaps = (a - b).abs()
        if len(gaps):
            self.most = max(self.most, float(gaps.max()))
        self.total, self.count = self.total + float(gaps.double().sum()), self.count + len(gaps)
        self.equal += int((gaps == 0).sum())

    def figures(self, name: str) -> dict[str, float]:
        count = max(1, self.count)
        return {f"{name}.max": self.most, f"{name}.mean": self.total / count, f"{name}.equal": self.equal / count}


def spans(lengths: list[int]) -> list[tuple[int, int]]:
    """Start and end of the documents in which a token follows another."""
    ends = [sum(lengths[: place + 1]) for place in range(len(lengths))]
    return [(end - length, end) for end, length in zip(ends, lengths) if length > 1]


def compare(model: PreTrainedModel, random: Random, longest: int, gaps: dict[str, Gap]) -> None:
    """One pack's log-probabilities, added to ``gaps``."""
    lengths, ids = draw(random, longest)
    together, plain = (logprobs(model, ids, lengths, isolate)[0] for isolate in (True, False))
    for start, end in spans(lengths):
        count = end - start
        alone = logprobs(model, ids[:, start:end], [count])[0]
        rest = sum(lengths) - count
        front = torch.cat([ids[:, start:end], tokens(random, rest)], dim=1)
        same = logprobs(model, front, [count, *cut(random, rest, longest)])[0][: count - 1]
        for name, other in (("alone", alone), ("same_shape", same)):
            gaps[name].add(together[start : end - 1], other)
        gaps["plain"].add(plain[start : end - 1], alone)


def compare_gradients(model: PreTrainedModel, random: Random, longest: int) -> dict[str, float]:
    """One pack's gradients."""
    lengths, ids = draw(random, longest)
    places = spans(lengths)
    inside = torch.cat([torch.arange(start, end - 1) for start, end in places]).to(model.device)
    found = {}
    for name, isolate in (("together", True), ("repeat", True), ("plain", False)):
        values, embedded = logprobs(model, ids, lengths, isolate)
        found[name] = gradients(model, values[inside], embedded)
    for name in ("alone", "same_shape"):
        inputs, weights = torch.zeros_like(found["together"][0]), [torch.zeros_like(g) for g in found["together"][1]]
        for start, end in places:
            count, rest = end - start, sum(lengths) - (end - start)
            batch, parts = ids[:, start:end], [count]
            if name == "same_shape":
                batch, parts = torch.cat([batch, tokens(random, rest)], dim=1), parts + cut(random, rest, longest)
            values, embedded = logprobs(model, batch, parts)
            first, others = gradients(model, values[: count - 1], embedded)
            inputs[start:end] = first[:count]
            weights = [a + b for a, b in zip(weights, others)]
        found[name] = inputs, weights
    together, figures = found.pop("together"), {}
    for name, (inputs, weights) in found.items():
        figures[f"{name}.gradient"] = relative_difference(weights, together[1])
        figures[f"{name}.inputs_gradient"] = relative_difference([inputs], [together[0]])
    return figures


def measure(name: str, options: argparse.Namespace, deadline: float) -> dict[str, float]:
    """One architecture's figures, of as many packs as requested or as fit before ``deadline``, but at least one."""
    device, random = torch.device(options.device), Random(options.seed)
    start = time.perf_counter()
    model = build(name, options.hidden, getattr(torch, options.dtype), device, options.gain)
    gaps = {kind: Gap() for kind in ("alone", "same_shape", "plain")}
    figures: dict[str, float] = {}
    for _ in range(options.gradients):
        for key, value in compare_gradients(model, random, options.longest).items():
            figures[key] = max(value, figures.get(key, 0.0))
        if time.perf_counter() > deadline:
            break
    packs = 0
    with torch.no_grad():
        while packs < options.packs and (packs == 0 or time.perf_counter() < deadline):
            compare(model, random, options.longest, gaps)
            packs += 1
    for kind, gap in gaps.items():
        figures |= gap.figures(kind)
    return figures | {"packs": packs, "tokens": gaps["alone"].count, "s": time.perf_counter() - start}


def summary(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """Over all architectures: the largest of each figure, the mean of means, the smallest share of equal ones."""
    found: dict[str, float] = {}
    for key in next(iter(results.values()), {}):
        values = [figures[key] for figures in results.values()]
        match key.rpartition(".")[2]:
            case "mean":
                found[key] = sum(values) / len(values)
            case "equal":
                found[key] = min(values)
            case "packs" | "tokens" | "s":
                found[key] = sum(values)
            case _:
                found[key] = max(values)
    return found


def table(results: dict[str, dict[str, float]]) -> str:
    """Rows of architectures, short enough for a terminal."""
    keys = [f"{kind}.{part}" for kind in ("alone", "same_shape") for part in ("max", "mean", "equal")]
    keys += ["plain.max", "plain.mean", "alone.gradient", "same_shape.gradient", "same_shape.inputs_gradient",
             "repeat.inputs_gradient", "plain.gradient", "packs", "s"]  # fmt: skip
    short = [key.replace("same_shape", "same").replace("inputs_gradient", "inputs") for key in keys]
    lines = [" " * 17 + " ".join(f"{key:>14}" for key in short)]
    for name, figures in results.items():
        lines.append(f"{name:17}" + " ".join(f"{figures.get(key, float('nan')):14.3g}" for key in keys))
    return "\n".join(lines)


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--packs", type=int, default=40 if on_gpu else 2, help="of each architecture")
    parser.add_argument(
        "--gradients", type=int, default=4 if on_gpu else 1, help="packs of which gradients are compared"
    )
    parser.add_argument("--hidden", type=int, default=512 if on_gpu else 64)
    parser.add_argument("--longest", type=int, default=LONGEST if on_gpu else 60, help="tokens of a document")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--gain", type=float, help="draw matrices with variance gain^2 / inputs")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=135.0, help="for all; later packs are left out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    begin, results, failed = time.perf_counter(), {}, []
    for place, name in enumerate(options.only):
        try:
            results[name] = measure(name, options, begin + options.seconds * (place + 1) / len(options.only))
        except Exception:  # the others are measured all the same
            failed.append(name)
            traceback.print_exc()
            continue
        shown = "  ".join(f"{key} {value:.3g}" for key, value in results[name].items())
        print(f"{name}: {shown}", flush=True)
        if options.json:
            setting = {"torch": torch.__version__, "transformers": transformers.__version__, "dtype": options.dtype}
            setting |= {"device": torch.cuda.get_device_name() if on_gpu else "CPU", "command": " ".join(sys.argv)}
            flat = summary(results) | {
                f"{arch}.{key}": v for arch, figures in results.items() for key, v in figures.items()
            }
            write_json(options.json, {"setting": setting, "figures": flat, "failed": failed})
    print(table(results | {"all": summary(results)}))
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
