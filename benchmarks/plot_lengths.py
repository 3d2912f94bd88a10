"""Draws tokens/s against pack length from sft_long_context.py's JSON, as an SVG file.

python benchmarks/plot_lengths.py docs/results/sft_long_context.json docs/results/sft_long_context.svg
"""

import argparse
import json
import math
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 420, 80, 30, 180, 50
COLOURS = {"triton": "#0a7d3c", "torch": "#1f5fbf", "wheels": "#c77700", "transformers": "#b3261e"}
NAMES = {
    "triton": "ours, Triton",
    "torch": "ours, torch",
    "wheels": "transformers + scan",
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


def svg(found: dict[str, list[tuple[int, float]]]) -> str:
    """The plot: lengths on a logarithmic axis, tokens/s on another."""
    points = [point for curve in found.values() for point in curve]
    x0, x1 = (math.log2(pick(length for length, _ in points)) for pick in (min, max))
    y0, y1 = (
        step(math.log10(pick(speed for _, speed in points))) for pick, step in ((min, math.floor), (max, math.ceil))
    )

    def place(length: float, speed: float) -> tuple[float, float]:
        x = LEFT + (math.log2(length) - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - (math.log10(speed) - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    box, font = f'viewBox="0 0 {WIDTH} {HEIGHT}"', 'font-family="sans-serif" font-size="13"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} {font}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18">tokens/s of training steps, 8-block slice, one H100, against tokens in a pack</text>',
    ]
    for power in range(int(x0), int(x1) + 1):
        x, _ = place(2**power, 10**y0)
        label = f"{2**power // 1024}K"
        lines.append(f'<line x1="{x:.0f}" y1="{TOP}" x2="{x:.0f}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        lines.append(f'<text x="{x:.0f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{label}</text>')
    for power in range(y0, y1 + 1):
        _, y = place(2**x0, 10**power)
        lines.append(f'<line x1="{LEFT}" y1="{y:.0f}" x2="{WIDTH - RIGHT}" y2="{y:.0f}" stroke="#ddd"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4:.0f}" text-anchor="end">{10**power:,}</text>')
    for path, curve in found.items():
        places = [place(*point) for point in curve]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        lines.append(f'<polyline points="{drawn}" fill="none" stroke="{COLOURS[path]}" stroke-width="2"/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{COLOURS[path]}"/>' for x, y in places]
        x, y = places[-1]
        lines.append(f'<text x="{x + 9:.0f}" y="{y + 4:.0f}" fill="{COLOURS[path]}">{NAMES[path]}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path)
    parser.add_argument("plot", type=Path)
    arguments = parser.parse_args()
    arguments.plot.write_text(svg(curves(json.loads(arguments.figures.read_text())["measured"])))


if __name__ == "__main__":
    main()
