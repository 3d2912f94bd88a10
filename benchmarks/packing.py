"""Best-fit and mixed packs at the size of the post-training mixture, and beside TRL's `pack_dataset`.

    python benchmarks/packing.py [--samples 11500000] [--peer-samples 20000] [--json FILE]

TRL packs rows of tokens, map batch by map batch of 1,000, and moves the tokens while it does; ours gives indices over
the whole data set. Times are therefore for different work; only how full the packs are can be compared.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np

from nanoalign.common.files import write_json
from nanoalign.models.packing import Packs, pack

CAPACITY = 131_072


def post_training_lengths(samples: int, seed: int = 0) -> np.ndarray:
    """Log-normal lengths with a mean of 7,000 tokens (80 B over 11.5 M samples), at most a pack long."""
    spread = 1.2
    lengths = np.random.default_rng(seed).lognormal(np.log(7100) - spread**2 / 2, spread, samples)
    return np.clip(lengths, 20, CAPACITY).astype(np.int32)


def timed(lengths: np.ndarray, seed: int | None = None) -> tuple[Packs, float]:
    """Best fit, or with a seed packs of documents drawn at random."""
    start = time.perf_counter()
    packs = pack(lengths, CAPACITY, seed=seed)
    return packs, time.perf_counter() - start


def trl_fill(lengths: np.ndarray) -> tuple[float, float]:
    """Fill and seconds of TRL's best-fit-decreasing strategy. Tokens are one byte wide, to hold many."""
    import datasets
    import pyarrow as pa
    from trl import pack_dataset

    datasets.disable_progress_bars()
    datasets.disable_caching()
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int32)]).astype(np.int32)
    tokens = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.zeros(int(offsets[-1]), dtype=np.int8)))
    rows = datasets.Dataset(pa.table({"input_ids": tokens}))
    start = time.perf_counter()
    packed = pack_dataset(rows, CAPACITY, "bfd")
    return int(lengths.sum()) / (len(packed) * CAPACITY), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=11_500_000)
    parser.add_argument("--peer-samples", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    lengths = post_training_lengths(options.samples)
    mixed, mixed_seconds = timed(lengths, seed=0)
    packs, seconds = timed(lengths)
    figures = {
        "mixed.packs": len(mixed),
        "mixed.seconds": mixed_seconds,
        "mixed.fill": mixed.fill,
        "pack.samples": options.samples,
        "pack.tokens": packs.tokens,
        "pack.packs": len(packs),
        "pack.seconds": seconds,
        "pack.fill": packs.fill,
        "pack.peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }
    print(
        f"{options.samples:,} samples, {packs.tokens / 1e9:.1f} B tokens: {len(packs):,} packs of {CAPACITY:,} in ",
        end="",
    )
    print(f"{seconds:.1f} s, fill {packs.fill:.5%}, peak memory {figures['pack.peak_rss_gb']:.2f} GB")
    print(f"at random: {len(mixed):,} packs in {mixed_seconds:.1f} s, fill {mixed.fill:.5%}")

    short = np.random.default_rng(0).integers(200, 5000, 1000).astype(np.int32)
    for name, lengths in {"mixture": post_training_lengths(options.peer_samples, 1), "short": short}.items():
        ours, ours_s = timed(lengths)
        random, random_s = timed(lengths, seed=0)
        theirs, theirs_s = trl_fill(lengths)
        most = int(lengths.sum()) / (-(-int(lengths.sum()) // CAPACITY) * CAPACITY)
        print(
            f"{name}, {len(lengths):,} samples: TRL {theirs:.3%} in {theirs_s:.2f} s, ours {ours.fill:.3%} in ", end=""
        )
        print(f"{ours_s:.2f} s, possible {most:.3%}, ours / TRL {ours.fill / theirs:.4f}")
        figures |= {f"{name}.trl_fill": theirs, f"{name}.fill": ours.fill, f"{name}.possible_fill": most}
        figures |= {f"{name}.mixed_fill": random.fill, f"{name}.mixed_s": random_s}
        figures |= {f"{name}.trl_s": theirs_s, f"{name}.s": ours_s, f"{name}.fill_ratio": ours.fill / theirs}
    if options.json:
        write_json(options.json, {"figures": figures})


if __name__ == "__main__":
    main()
