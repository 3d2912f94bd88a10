"""FP8 products on one Hopper GPU: are they right, and how fast; needs torch and Triton alone.

    python benchmarks/fp8.py [--json FILE] [--quick]

For each layer of Nemotron Nano v2 (tokens x inputs x outputs): the relative error of the output and both gradients
against float32, of what the operands in FP8 stand for and of the bf16 originals; then milliseconds of the products, of
rounding to FP8, and of a whole layer forward and backward beside bf16. Where a call fails, what else torch documents is
tried and named. The training step as a whole is benchmarks/sft_long_context.py's (``fp8.slice.131072``).
"""

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanoalign.models import fp8, fp8_tiles, triton_fp8
from nanoalign.models.fp8_tiles import Tiles

TOKENS = 16_384
"""A tile of a pack."""
LAYERS = {
    "12b.up": (5120, 20_480),
    "12b.down": (20_480, 5120),
    "12b.in": (5120, 22_656),
    "12b.out": (10_240, 5120),
    "12b.q": (5120, 5120),
    "12b.kv": (5120, 1024),
    "9b.up": (4480, 15_680),
    "9b.down": (15_680, 4480),
    "9b.in": (4480, 22_656),
    "table10.up": (4480, 14_400),
    "smollm2.up": (576, 1536),
    "smollm2.kv": (576, 192),
    "miniature.in": (192, 838),
}
"""Inputs and outputs of layers; those of small models are checked, not timed."""
QUICK = ("12b.up", "12b.down", "12b.in", "9b.up", "miniature.in")
Figures = dict[str, Any]


def error(found: Tensor, want: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((found.float() - want.float()).norm() / want.float().norm())


def milliseconds(run: Callable[[], Any], repeats: int = 8) -> float:
    """Of the fastest of some runs, on the GPU's clock."""
    run()
    best = float("inf")
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end))
    return best


def draw(*shape: int, spread: float = 1.0) -> Tensor:
    """bf16 with rows of different sizes, as activations have."""
    values = torch.randn(*shape, device="cuda")
    return (values * (spread * torch.randn(shape[0], 1, device="cuda")).exp()).bfloat16()


def bits() -> Figures:
    """The Triton kernel against plain torch on this GPU: how many values and scales differ."""
    found: Figures = {}
    for rows, columns, dtype in ((300, 1000, torch.bfloat16), (2048, 5120, torch.bfloat16), (257, 640, torch.float32)):
        x = draw(rows, columns).to(dtype)
        x[150:290], x[3, 5], x[4, 7] = 0, 1e-30, float("inf")
        pairs = [*zip(triton_fp8.quantize(x, True, True), (fp8_tiles.along_rows(x), fp8_tiles.along_columns(x)))]
        pairs += [*zip(triton_fp8.in_blocks(x), fp8_tiles.in_blocks(x))]
        for name, (ours, theirs) in zip(("rows", "columns", "blocks", "transposed"), pairs):
            assert ours is not None and ours.scale.stride() == theirs.scale.stride(), name
            values = int((ours.values.view(torch.uint8) != theirs.values.view(torch.uint8)).sum())
            found[f"{rows}x{columns}.{name}"] = [values, int((ours.scale != theirs.scale).sum())]
    return found


def _ours(a: Tiles, b: Tiles) -> Tensor:
    return fp8.multiply(a, b, torch.bfloat16)


def _named(a: Tiles, b: Tiles) -> Tensor:
    """F.scaled_mm, its recipes by name."""
    recipes = [F.ScalingType.BlockWise1x128 if len(each.scale) == len(each.values) else F.ScalingType.BlockWise128x128
               for each in (a, b)]  # fmt: skip
    return F.scaled_mm(
        a.values, b.values.T, a.scale, recipes[0], b.scale.T, recipes[1], output_dtype=torch.bfloat16
    )  # fmt: skip


def _narrow(a: Tiles, b: Tiles) -> Tensor:
    """A weight's blocks given as tiles of 1x128."""
    if len(b.scale) == len(b.values):
        return _ours(a, b)
    scale = b.scale.repeat_interleave(128, 0)[: len(b.values)].T.contiguous().T
    return _ours(a, Tiles(b.values, scale))


def _row_major(a: Tiles, b: Tiles) -> Tensor:
    """All scales row-major."""
    return torch._scaled_mm(
        a.values, b.values.T, a.scale.contiguous(), b.scale.T.contiguous(), out_dtype=torch.bfloat16
    )


ALTERNATIVES = {"ours": _ours, "F.scaled_mm": _named, "tiles": _narrow, "row_major": _row_major}


def products(inputs: int, outputs: int, tokens: int) -> dict[str, tuple[Tiles, Tiles, Tensor, Tensor]]:
    """The three products of a layer: both sides, and both sides as they were, the second transposed."""
    x, weight, grad = draw(tokens, inputs), draw(outputs, inputs, spread=0.1) / inputs**0.5, draw(tokens, outputs)
    rows, columns = triton_fp8.quantize(x, True, True)
    grad_rows, grad_columns = triton_fp8.quantize(grad, True, True)
    straight, transposed = triton_fp8.in_blocks(weight)
    assert rows and columns and grad_rows and grad_columns
    return {
        "output": (rows, straight, x, weight),
        "input_gradient": (grad_rows, transposed, grad, weight.T),
        "weight_gradient": (grad_columns, columns, grad.T, x.T),
    }


def numerics(inputs: int, outputs: int, tokens: int = 2048) -> Figures:
    """Relative errors of a layer's three products: exact is against the operands in FP8, original against bf16's."""
    found: Figures = {}
    for name, (a, b, first, second) in products(inputs, outputs, tokens).items():
        exact = (a.dequantized() @ b.dequantized().T).float()
        original = first.float() @ second.float().T
        for label, call in ALTERNATIVES.items():
            if label != "ours" and found.get(f"{name}.exact", 1.0) < 0.01:
                break
            try:
                y = call(a, b)
            except Exception as wrong:
                traceback.print_exc()
                found[f"{name}.{label}.raised"] = f"{type(wrong).__name__}: {str(wrong)[:300]}"
                continue
            key = name if label == "ours" else f"{name}.{label}"
            found[f"{key}.exact"] = error(y, exact)
            found[f"{key}.original"] = error(y[: len(original), : original.shape[1]], original)
        if name == "weight_gradient":  # of fp32 master weights
            y = fp8.multiply(a, b, torch.float32)
            found["weight_gradient.float32.exact"] = error(y, exact)
    return found


def isolation(inputs: int, outputs: int, tokens: int = 4096) -> Figures:
    """Whether a document's outputs and inputs' gradients are the same to the bit beside other neighbours, and alone."""
    x, weight, grad = draw(tokens, inputs), draw(outputs, inputs) / inputs**0.5, draw(tokens, outputs)
    start, end = 1000, 2777
    document = slice(start, end)
    others_x, others_grad = draw(tokens, inputs) * 100, draw(tokens, outputs) * 100
    others_x[document], others_grad[document] = x[document], grad[document]

    def both(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        grad_x, _ = fp8.gradients(grad, x, weight, True, False)
        assert grad_x is not None
        return fp8.product(x, weight), grad_x

    packed, moved, alone = both(x, grad), both(others_x, others_grad), both(x[document], grad[document])
    return {
        "neighbours_equal_bits": all(torch.equal(a[document], b[document]) for a, b in zip(packed, moved)),
        "alone_equal_bits": all(torch.equal(a[document], b) for a, b in zip(packed, alone)),
        "alone_largest": max(float((a[document] - b).abs().max()) for a, b in zip(packed, alone)),
    }


def speed(inputs: int, outputs: int, tokens: int = TOKENS) -> Figures:
    """Milliseconds and TFLOP/s of a layer's products and roundings, and of the whole layer in bf16 and FP8."""
    work, found = 2e-9 * tokens * inputs * outputs, Figures()
    for name, (a, b, first, second) in products(inputs, outputs, tokens).items():
        found[f"{name}.bf16_tflops"] = work / milliseconds(lambda first=first, second=second: first @ second.T)
        found[f"{name}.fp8_tflops"] = work / milliseconds(lambda a=a, b=b: _ours(a, b))
    x, weight, grad = draw(tokens, inputs), draw(outputs, inputs) / inputs**0.5, draw(tokens, outputs)
    found["round_input_ms"] = milliseconds(lambda: triton_fp8.quantize(x))
    found["round_input_columns_ms"] = milliseconds(lambda: triton_fp8.quantize(x, False, True))
    found["round_gradient_ms"] = milliseconds(lambda: triton_fp8.quantize(grad, True, True))
    found["round_weight_ms"] = milliseconds(lambda: triton_fp8.in_blocks(weight))
    x.requires_grad_()
    weight.requires_grad_()

    def layer(function: Callable[[Tensor, Tensor], Tensor]) -> float:
        return milliseconds(lambda: torch.autograd.grad(function(x, weight), (x, weight), grad))

    found["bf16_ms"], found["fp8_ms"] = layer(F.linear), layer(fp8.linear)
    return found | {"ratio": found["bf16_ms"] / found["fp8_ms"]}


def warps(rows: int = TOKENS, columns: int = 20_480) -> Figures:
    """Milliseconds of the rounding kernel by its number of warps, and the bandwidth of the best."""
    x, found, chosen = draw(rows, columns), Figures(), triton_fp8.WARPS
    for kind, flags, width in (("rows", (True, False), 3), ("columns", (False, True), 3), ("both", (True, True), 4)):
        for number in (4, 8, 16):
            triton_fp8.WARPS = number
            took = milliseconds(lambda flags=flags: triton_fp8.quantize(x, *flags))
            found[f"{kind}.{number}_warps_ms"] = took
            found[f"{kind}.{number}_warps_gb_per_s"] = width * x.numel() / took / 1e6
    triton_fp8.WARPS = chosen
    return found


def rowwise(inputs: int, outputs: int, tokens: int = TOKENS) -> Figures:
    """TFLOP/s of the output's product with one scale a row, fast accumulation off and on, for comparison."""
    a, b = (torch.randn(size, inputs, device="cuda").to(torch.float8_e4m3fn) for size in (tokens, outputs))
    scale_a, scale_b = torch.ones(tokens, 1, device="cuda"), torch.ones(1, outputs, device="cuda")
    work = 2e-9 * tokens * inputs * outputs

    def run(fast: bool) -> Tensor:
        return torch._scaled_mm(a, b.T, scale_a, scale_b, out_dtype=torch.bfloat16, use_fast_accum=fast)

    return {f"{name}_tflops": work / milliseconds(lambda fast=fast: run(fast)) for name, fast in
            (("exact", False), ("fast", True))}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="written after each measurement")
    parser.add_argument("--quick", action="store_true", help="fewer layers")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    results: dict[str, Any] = {"setting": {
        "torch": torch.__version__, "cuda": torch.version.cuda, "device": torch.cuda.get_device_name(),
        "command": " ".join(sys.argv),
    }}  # fmt: skip
    print(results["setting"], flush=True)
    layers = {name: sizes for name, sizes in LAYERS.items() if not options.quick or name in QUICK}
    parts: list[tuple[str, Callable[[], Figures]]] = [("bits", bits)]
    parts += [(f"numerics.{name}", lambda sizes=sizes: numerics(*sizes)) for name, sizes in layers.items()]
    parts += [(f"isolation.{name}", lambda name=name: isolation(*LAYERS[name])) for name in ("12b.up", "9b.up")]
    parts += [("warps", warps)]
    timed = {name: sizes for name, sizes in layers.items() if not name.startswith(("smollm2", "miniature"))}
    parts += [(f"speed.{name}", lambda sizes=sizes: speed(*sizes)) for name, sizes in timed.items()]
    parts += [(f"rowwise.{name}", lambda name=name: rowwise(*LAYERS[name])) for name in ("12b.up", "9b.up")]
    for name, run in parts:
        try:
            results[name] = run()
        except Exception as wrong:
            traceback.print_exc()
            results[name] = {"raised": f"{type(wrong).__name__}: {str(wrong)[:300]}"}
        torch.cuda.empty_cache()
        shown = "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                          for key, value in results[name].items())  # fmt: skip
        print(f"{name:24} {shown}", flush=True)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
