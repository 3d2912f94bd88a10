"""Checkpoint interpolation beside ``cp`` and mergekit, on the same files in the same run.

    python benchmarks/merge.py [--json FILE] [--quick] [--large-gb 20] [--folder DIR]

Inputs are read once before each timing (warm page cache). Times are the best of ``--rounds``, without process start
except for the nine runs of mergekit's command line. ``cp`` and the merge are compared without fsync on either side, and
once more with it, as the merge does it. Memory is the peak of anonymous pages above what the process held before.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from nanoalign.merge.checkpoint import TensorInfo, header_bytes, open_checkpoint
from nanoalign.merge.interpolate import fill_folders, write_interpolations
from nanoalign.merge.mergekit_bridge import mergekit_config, write_config
from nanoalign.merge.pair import Pair, default_threads, make_pair, require_finite, tensors_at
from nanoalign.models.miniature import miniature_config

ALPHAS = [round(0.1 * count, 1) for count in range(1, 10)]
SHAPE = {"hidden_size": 1536, "intermediate_size": 4096, "num_attention_heads": 16, "num_key_value_heads": 16}


def llama(layers: int) -> LlamaConfig:
    """Untied, 28.3M parameters per layer and 98M around them."""
    return LlamaConfig(vocab_size=32_000, num_hidden_layers=layers, tie_word_embeddings=False, **SHAPE)


def write_checkpoint(config: PreTrainedConfig, folder: Path, seed: int) -> None:
    """A random bf16 checkpoint in the layout of its architecture, written tensor by tensor. Equal seeds give models
    that differ by a tenth, as two fine-tunes of one base do."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = {name.replace("model.", "backbone.", 1) if config.model_type == "nemotron_h" else name: shape
              for name, shape in shapes.items()}  # fmt: skip
    infos = [TensorInfo(name, "BF16", shape, folder / "model.safetensors", 0, 2 * torch.Size(shape).numel())
             for name, shape in stored.items()]  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    noise = (torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header_bytes(infos))
        for place, info in enumerate(infos):
            for start in range(0, info.numel, noise.numel()):
                count = min(noise.numel(), info.numel - start)
                values = noise.roll(place)[:count]
                if seed:
                    values = (values.float() * (1 + 0.1 * torch.randn(count, generator=generator))).bfloat16()
                file.write(values.view(torch.uint8).numpy())


def warm(*files: Path) -> None:
    for file in files:
        with file.open("rb") as handle:
            while handle.read(1 << 24):
                pass


def one_merge(a: Path, b: Path, output: Path) -> tuple[float, float, float]:
    """MB, seconds and CPU seconds of one merge, written and synced. Memory is the peak of RssAnon above what the
    process held before, sampled every 5 ms. To be called in a fresh process: freed memory that an older one kept would
    hide the peak."""

    def anonymous() -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) / 1000

    begun, used = time.perf_counter(), time.process_time()
    pair = reopened(a, b)
    before, peak, ended = anonymous(), [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            peak.append(anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    write_interpolations(pair, {0.3: output})
    ended.set()
    watcher.join()
    return max(peak) - before, time.perf_counter() - begun, time.process_time() - used


def in_fresh_process(a: Path, b: Path, output: Path) -> tuple[float, float, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(one_merge, a, b, output).result()


class Bench:
    """The files of one run and the timings on them."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder, self.rounds, self.count = folder, rounds, 0

    def out(self) -> Path:
        """A fresh empty folder; those before are gone."""
        for old in self.folder.glob("out*"):
            shutil.rmtree(old)
        self.count += 1
        folder = self.folder / f"out{self.count}"
        folder.mkdir()
        return folder

    def best(self, contests: dict[str, Callable[[Path], object]], *inputs: Path) -> dict[str, float]:
        """The best wall and CPU time of each contestant, CPU time over all threads and children. They take turns, so
        that others' load on the machine falls on all."""
        times: dict[str, list[float]] = {name + kind: [] for name in contests for kind in ("_s", "_cpu_s")}
        for _ in range(self.rounds):
            for name, work in contests.items():
                folder = self.out()
                warm(*inputs)
                begun, used = time.perf_counter(), sum(os.times()[:4])
                work(folder)
                times[f"{name}_s"].append(time.perf_counter() - begun)
                times[f"{name}_cpu_s"].append(sum(os.times()[:4]) - used)
        return {name: min(each) for name, each in times.items()}


def copies(source: Path, count: int, sync: bool = False) -> Callable[[Path], None]:
    """``cp`` of the weights, once for each alpha."""

    def work(folder: Path) -> None:
        for number in range(count):
            subprocess.run(["cp", source, folder / str(number)], check=True)
            if sync:
                with (folder / str(number)).open("rb") as file:
                    os.fsync(file.fileno())

    return work


def merges(pair: Pair, alphas: list[float]) -> Callable[[Path], None]:
    """The pass itself, with headers, config and the closing check, without fsync and rename."""

    def work(folder: Path) -> None:
        targets = {alpha: folder / str(alpha) for alpha in alphas}
        for target in targets.values():
            target.mkdir()
        fill_folders(pair, targets)

    return work


def reopened(a: Path, b: Path) -> Pair:
    """A pair with fresh mappings: their page faults count."""
    return make_pair(open_checkpoint(a), open_checkpoint(b))


def mergekit_in_process(a: Path, b: Path, alpha: float, folder: Path) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = mergekit_config("linear", [a, b], weights=[1 - alpha, alpha])
    run_merge(MergeConfiguration.model_validate(config), str(folder), MergeOptions(copy_tokenizer=False, quiet=True))


def mergekit_command(a: Path, b: Path, alpha: float, folder: Path) -> None:
    write_config(mergekit_config("linear", [a, b], weights=[1 - alpha, alpha]), folder / "c.yml")
    program = str(Path(sys.executable).with_name("mergekit-yaml"))
    command = [program, str(folder / "c.yml"), str(folder / "o"), "--quiet", "--no-copy-tokenizer"]
    subprocess.run(command, check=True, capture_output=True)


def wrong_share(pair: Pair, merged: Path, alpha: float) -> float:
    """Share of elements that differ from the float64 result, rounded to bf16; the first 4M elements of each tensor."""
    found, wrong, total = open_checkpoint(merged), 0, 0
    for name in pair.names:
        count = min(pair.info(name).numel, 1 << 22)
        x, y, z = (source.flat(name, 0, count) for source in (pair.a, pair.b, found))
        wrong += int((((1 - alpha) * x.double() + alpha * y.double()).bfloat16() != z).sum())
        total += count
    return wrong / total


def one_gigabyte(bench: Bench, quick: bool) -> dict[str, float]:
    """Everything on the pair of about 1 GB."""
    a, b = bench.folder / "a", bench.folder / "b"
    for seed, folder in enumerate((a, b)):
        write_checkpoint(llama(2 if quick else 14), folder, seed)
    weights = [folder / "model.safetensors" for folder in (a, b)]
    figures: dict[str, float] = {"gigabytes": weights[0].stat().st_size / 1e9}
    mergekit_in_process(a, b, 0.3, bench.out())  # its imports are not timed
    figures["mergekit_wrong_share"] = wrong_share(reopened(a, b), next(bench.folder.glob("out*")), 0.3)
    figures |= bench.best(
        {
            "cp": copies(weights[0], 1),
            "single": lambda folder: merges(reopened(a, b), [0.3])(folder),
            "cp_fsync": copies(weights[0], 1, sync=True),
            "single_fsync": lambda folder: write_interpolations(reopened(a, b), {0.3: folder / "o"}),
            "mergekit": lambda folder: mergekit_in_process(a, b, 0.3, folder),
        },
        *weights,
    )
    figures |= bench.best(
        {"cp9": copies(weights[0], 9), "sweep9": lambda folder: merges(reopened(a, b), ALPHAS)(folder)}, *weights
    )
    output = bench.out() / "o"
    figures["peak_rss_mb"] = in_fresh_process(a, b, output)[0]
    figures["wrong_share"] = wrong_share(reopened(a, b), output, 0.3)
    bench.out()
    figures |= zero_write(bench, a, b)
    runs = ALPHAS[:1] if quick else ALPHAS
    once = Bench(bench.folder, 1)
    times = [once.best({"cli": lambda folder, alpha=alpha: mergekit_command(a, b, alpha, folder)}) for alpha in runs]  # type: ignore[misc]
    for kind in ("s", "cpu_s"):
        figures[f"mergekit_cli9_{kind}"] = sum(each[f"cli_{kind}"] for each in times) * 9 / len(runs)
    bench.out()
    for folder in (a, b):
        shutil.rmtree(folder)
    return figures


def zero_write(bench: Bench, a: Path, b: Path) -> dict[str, float]:
    """Nine merges into a live model's tensors, with the check of all weights, as a sweep does it."""
    live = {name: torch.zeros(info.shape, dtype=torch.bfloat16) for name, info in open_checkpoint(a).tensors.items()}

    def work(folder: Path) -> None:
        pair = reopened(a, b)
        require_finite(pair)
        for alpha in ALPHAS:
            for _ in tensors_at(pair, alpha, live):
                pass

    return bench.best({"zero_write9": work})


def nemotron(bench: Bench) -> dict[str, float]:
    """Tensors of a nemotron_h that each writes."""
    a, b = bench.folder / "a", bench.folder / "b"
    for seed, folder in enumerate((a, b)):
        write_checkpoint(miniature_config(2048), folder, seed)
    ours, theirs = bench.out(), bench.folder / "theirs"
    write_interpolations(reopened(a, b), {0.3: ours / "o"})
    counts = {"tensors": a, "ours": ours / "o", "mergekit": theirs}
    try:
        mergekit_in_process(a, b, 0.3, theirs)
    except RuntimeError:
        counts.pop("mergekit")  # it refuses
    figures = {f"nemotron_h_{label}": float(len(open_checkpoint(folder).tensors)) for label, folder in counts.items()}
    for folder in (a, b, theirs):
        shutil.rmtree(folder, ignore_errors=True)
    return {"nemotron_h_mergekit": 0.0} | figures


def large(bench: Bench, gigabytes: float) -> dict[str, float]:
    """One merge of a pair of ``gigabytes`` in all and, before it, one of a quarter of that, each with fsync. Seconds
    are per gigabyte of output: those of CPU time are equal where the merge scales linearly, those of wall time also
    show which pair fitted into the page cache."""
    figures: dict[str, float] = {}
    for label, size in (("quarter", gigabytes / 4), ("large", gigabytes)):
        a, b = bench.folder / "large-a", bench.folder / "large-b"
        for seed, folder in enumerate((a, b)):
            write_checkpoint(llama(max(1, round((size / 2 * 1e9 / 2 - 98.3e6) / 28.3e6))), folder, seed)
        output_gb = reopened(a, b).nbytes / 1e9
        peak, seconds, cpu_seconds = in_fresh_process(a, b, bench.out() / "o")
        figures |= {
            f"{label}_pair_gb": 2 * output_gb, f"{label}_s_per_gb": seconds / output_gb,
            f"{label}_cpu_s_per_gb": cpu_seconds / output_gb, f"{label}_peak_rss_mb": peak,
        }  # fmt: skip
        bench.out()
        for folder in (a, b):
            shutil.rmtree(folder)
    return figures | {"large_cpu_scaling": figures["large_cpu_s_per_gb"] / figures["quarter_cpu_s_per_gb"]}


def ratios(raw: dict[str, float]) -> dict[str, float]:
    """The figures of issue 6. ``vs_cp`` is our time over cp's; ``vs_mergekit`` is mergekit's over ours. Those of CPU
    time tell what others' load did not change; two threads halve the wall time, not the CPU time."""
    return {
        "single_vs_cp": raw["single_s"] / raw["cp_s"],
        "single_fsync_vs_cp_fsync": raw["single_fsync_s"] / raw["cp_fsync_s"],
        "single_vs_mergekit": raw["mergekit_s"] / raw["single_s"],
        "sweep9_vs_cp": raw["sweep9_s"] / raw["cp9_s"],
        "sweep9_vs_mergekit_cli": raw["mergekit_cli9_s"] / raw["sweep9_s"],
        "zero_write_vs_mergekit_cli": raw["mergekit_cli9_s"] / raw["zero_write9_s"],
        "peak_rss_mb": raw["peak_rss_mb"],
        "cpu_single_vs_cp": raw["single_cpu_s"] / raw["cp_cpu_s"],
        "cpu_single_vs_mergekit": raw["mergekit_cpu_s"] / raw["single_cpu_s"],
        "cpu_sweep9_vs_cp": raw["sweep9_cpu_s"] / raw["cp9_cpu_s"],
        "cpu_sweep9_vs_mergekit_cli": raw["mergekit_cli9_cpu_s"] / raw["sweep9_cpu_s"],
        "cpu_zero_write_vs_mergekit_cli": raw["mergekit_cli9_cpu_s"] / raw["zero_write9_cpu_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--quick", action="store_true", help="a fifth of the size; mergekit's command once instead of nine times"
    )
    parser.add_argument("--large-gb", type=float, default=0.0, help="size of both inputs of the large merge; 0: none")
    parser.add_argument(
        "--folder", type=Path, help="where the files go (a disk with room); default: the temporary folder"
    )
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="merge-benchmark-") as folder:
        bench = Bench(Path(folder), arguments.rounds)
        raw = one_gigabyte(bench, arguments.quick) | nemotron(bench)
        if arguments.large_gb:
            raw |= large(bench, arguments.large_gb)
    figures = ratios(raw) | raw
    machine = {
        "command": " ".join(["python", *sys.argv]),
        "cpus": len(os.sched_getaffinity(0)),
        "threads": default_threads(),
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{library: version(library) for library in ("torch", "mergekit", "safetensors")},
    }
    for name, value in figures.items():
        print(f"{name:28} {value:10.4g}")
    print(json.dumps(machine))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
