"""Draws tokens/s against pack length from sft_long_context.py's JSON.

python benchmarks/plot_lengths.py docs/results/sft_long_context.json docs/pictures/sft_long_context.png
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

NAMES = {
    "triton": "ours, Triton",
    "torch": "ours, torch",
    "wheels": "transformers with mamba-ssm's scan",
    "transformers": "transformers",
}


def curves(measured: dict[str, float]) -> dict[str, list[tuple[int, float]]]:
    """By path: (tokens in a pack, tokens/s), by length."""
    found: dict[str, list[tuple[int, float]]] = {}
    for key, value in measured.items():
        parts = key.split(".")
        if parts[0] == "slice" and parts[-1] == "tokens_per_s":
            found.setdefault(parts[1], []).append((int(parts[2]), value))
    return {path: sorted(points) for path, points in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    axes = figure.subplots()
    for path, points in curves(json.loads(options.json.read_text())["measured"]).items():
        axes.plot(*zip(*points, strict=True), marker="o", label=NAMES[path])
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="tokens in a pack", ylabel="tokens/s", title="Training steps of the 8-block slice on one H100")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
