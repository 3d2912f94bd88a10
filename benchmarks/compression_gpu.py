"""Pruning and search of the 12B shape (random weights) on one GPU: time of each part, and peak memory.

    python -m benchmarks.nano9b /dev/shm/nano12b --size 12B
    python -m benchmarks.compression_gpu /dev/shm/nano12b --folder /dev/shm/compressed --json compression_gpu.json

Random weights say nothing about what is worth keeping: only time, memory, and that the written model has the size that
the plan promised. Documents are the miniature's, in rows of 4,096 tokens. ``--tiny`` goes with nano9b's.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch

from nanoalign.common.files import write_json
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.compress import stage
from nanoalign.compress.config import CompressStage
from nanoalign.data_recipes.config import Mixture
from nanoalign.models.model_folder import read_tensors

GRID: dict[str, Any] = {
    "blocks": [56], "attention_blocks": [4], "mamba_blocks": [27], "hidden_size": [4480, 4800],
    "intermediate_size": [14400, 15680, 17920], "mamba_num_heads": [112, 120, 128],
}  # fmt: skip
TINY: dict[str, Any] = {"blocks": [3], "hidden_size": [48, 64], "intermediate_size": [96, 128]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="where the stage works")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--screen", type=int, default=6)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    config = CompressStage.model_validate({
        "kind": "compress", "from": "base", "data": "mixed", "grid": TINY if options.tiny else GRID,
        "calibration": {"length": 512 if options.tiny else 4096, "rows": options.rows, "depth_rows": 2,
                        "held_out_rows": 8},
        "screen": options.screen, "best": 1,
    })  # fmt: skip
    mixtures = {"mixed": Mixture(sources={"miniature:math": 100 if options.tiny else 2500})}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    log = StageLog(options.folder)
    context = StageContext("compressed", options.folder, {"from": options.model}, "nemotron-nano-v2", 17, None, device,
                           log=log)  # fmt: skip
    started = time.time()
    figures = stage.run(config, mixtures, context)
    seconds = time.time() - started
    lines = (options.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    ends = {row["phase"]: row["time"] for row in rows if row["time"] >= started}
    parts, before = {}, started
    for phase in ("importance", "order of removal", "screening", "finalists"):
        if phase in ends:
            parts[f"{phase.replace(' ', '_')}_s"] = ends[phase] - before
            before = ends[phase]
    written = sum(header.size for header in read_tensors(options.folder / "model").values())
    assert written == figures["compress.parameters"]
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    write_json(options.json, {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "torch": torch.__version__,
        "calibration": config.calibration.model_dump(),
        "figures": figures | parts | {
            "compress.wall_s": seconds, "compress.host_peak_gb": host / 1e9,
            "compress.gpu_peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None,
        },
    })  # fmt: skip
    print(options.json.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
