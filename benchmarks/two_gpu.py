"""Two GPUs against one: equal losses and gradients, and tokens per second of each GPU.

    python benchmarks/two_gpu.py [--lengths 65536 131072] [--limit 170] [--json FILE]

Starts one process per GPU. Exactness is that of a small hybrid in fp32, one GPU against two that share a pack (sequence
parallelism) or train on a pack each under DeepSpeed's ZeRO-3. Speed is that of the 8-block slice of
Nemotron-Nano-12B-v2 of sft_long_context.py: forward and backward passes, bf16, gradient checkpointing, documents of
6,500 tokens on average. `scaling` is tokens/s of each of two GPUs over tokens/s of one, at the same length of pack.
Every figure is written as it comes; after --limit seconds the processes are ended, and what was found is printed.
--tiny tries all of it on two CPU processes.
"""

import argparse
import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "hybrid_override_pattern": "M-M*-",
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32, "mamba_num_heads": 8, "mamba_head_dim": 64,
    "n_groups": 2, "ssm_state_size": 64, "conv_kernel": 4, "chunk_size": 64,
}  # fmt: skip


class PackLoss(nn.Module):
    """The summed loss of a pack, or of a rank's stretch of it, over the trained tokens of all."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, labels: Tensor, tokens: int, **inputs: Any) -> Tensor:
        from nanoalign.models.loss import linear_cross_entropy

        hidden = self.model.base_model(**inputs).last_hidden_state
        return linear_cross_entropy(hidden.flatten(0, 1), self.model.lm_head.weight, labels.flatten()) / tokens


class Bench:
    """What every measurement of a process shares."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.rank, self.ranks = arguments, dist.get_rank(), dist.get_world_size()
        self.device = torch.device("cpu" if arguments.tiny else f"cuda:{int(os.environ['LOCAL_RANK'])}")
        self.exact = 256 if arguments.tiny else 4096
        """Tokens of a pack in which exactness is measured."""
        self.figures: dict[str, float | str] = {}

    def note(self, name: str, value: float | str) -> None:
        self.figures[f"two_gpu.{name}"] = value
        if self.rank == 0:
            print(f"{name:32} {value if isinstance(value, str) else f'{value:.6g}'}", flush=True)
            from nanoalign.common.files import atomic_file

            with atomic_file(self.arguments.part) as temporary:  # a time limit may end this process at any moment
                temporary.write_text(json.dumps(self.figures))

    def attempt(self, name: str, measurement: Callable[[], None]) -> None:
        """Records what goes wrong, and continues."""
        start = time.perf_counter()
        try:
            measurement()
        except Exception as error:
            self.note(f"{name}.error", f"{type(error).__name__}: {error}"[:300])
        self.note(f"{name}.seconds", time.perf_counter() - start)
        gc.collect()
        if not self.arguments.tiny:
            torch.cuda.empty_cache()

    def model(self, settings: dict[str, Any], dtype: torch.dtype, fast: bool) -> Any:
        """The same weights on every rank; on this suite's path, its Triton kernels where ``fast``."""
        from transformers import NemotronHConfig, NemotronHForCausalLM

        from nanoalign.models.hybrid import install
        from nanoalign.models.tiling import tile

        torch.manual_seed(0)
        with torch.device(self.device):
            model = NemotronHForCausalLM(NemotronHConfig(**settings)).to(dtype)
        kernels: Any = "triton" if fast and not self.arguments.tiny else "torch"
        install(model, kernels)
        if fast:
            tile(model)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        return model.train()

    def pack(self, total: int, vocabulary: int, seed: int, mean: int) -> dict[str, Any]:
        """Inputs and labels of one pack of random documents, exponential in length."""
        from benchmarks.sft_long_context import lengths_of
        from nanoalign.models.packed_attention import packed_inputs

        draw = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, vocabulary, (1, total), generator=draw).to(self.device)
        inputs = packed_inputs(lengths_of(total, mean, seed), device=self.device)
        seq_idx = inputs["seq_idx"]
        last = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (0, 1), value=True)
        labels = F.pad(ids[:, 1:], (0, 1)).masked_fill(last, -100)
        return {"input_ids": ids, "labels": labels, "tokens": int((~last).sum()), **inputs}

    def shard(self, pack: dict[str, Any]) -> dict[str, Any]:
        """This rank's part of a pack."""
        mine = {name: pack[name].chunk(self.ranks, 1)[self.rank] for name in ("input_ids", "labels", "position_ids")}
        return mine | {"seq_idx": pack["seq_idx"], "tokens": pack["tokens"]}

    def summed(self, value: Tensor) -> Tensor:
        value = value.detach().float().clone()
        dist.all_reduce(value)
        return value

    def engine(self, loss: PackLoss) -> Any:
        """DeepSpeed's ZeRO-3 around a model, as sft.trainer sets it up."""
        import deepspeed

        from nanoalign.models.zero3 import gather_blocks

        gather_blocks(loss.model, root=loss)
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "bf16": {"enabled": next(loss.parameters()).dtype == torch.bfloat16},
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 10_000},
            "zero_allow_untested_optimizer": True,
        }
        optimizer = torch.optim.AdamW(loss.parameters(), lr=1e-5)
        return deepspeed.initialize(model=loss, optimizer=optimizer, config=settings)[0]


def difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Norm of the difference of two gradients over the norm of the first."""
    square = sum(float((two[name].float() - grad.float()).double().square().sum()) for name, grad in one.items())
    return math.sqrt(square / sum(float(grad.double().square().sum()) for grad in one.values()))


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad.detach().clone() for name, weight in module.named_parameters() if weight.grad is not None}


def exact_sequence(bench: Bench) -> None:
    """fp32: two ranks that share a pack against one that has all of it."""
    from nanoalign.models.sequence_parallel import parallelize

    pack = bench.pack(bench.exact, 512, seed=1, mean=300)
    alone = PackLoss(bench.model(SMALL, torch.float32, fast=False))
    expected = alone(**pack)
    expected.backward()
    model = bench.model(SMALL, torch.float32, fast=False)
    parallelize(model, dist.group.WORLD)
    shared = PackLoss(model)
    part = shared(**bench.shard(pack))
    part.backward()
    found = {name: bench.summed(grad) for name, grad in gradients(shared).items()}
    bench.note("loss_diff", abs(float(bench.summed(part)) - float(expected.detach())))
    bench.note("grad_diff", difference(gradients(alone), found))


def exact_zero3(bench: Bench) -> None:
    """fp32: a pack for each of two ranks under ZeRO-3 against one that has both."""
    from deepspeed.utils import safe_get_full_grad

    packs = [bench.pack(bench.exact, 512, seed=seed, mean=300) for seed in range(bench.ranks)]
    alone = PackLoss(bench.model(SMALL, torch.float32, fast=False))
    losses = [alone(**pack) / bench.ranks for pack in packs]
    total = torch.stack(losses).sum()
    total.backward()
    engine = bench.engine(PackLoss(bench.model(SMALL, torch.float32, fast=False)))
    part = engine(**packs[bench.rank])
    engine.backward(part)
    found = {name: safe_get_full_grad(weight).to(bench.device) for name, weight in engine.module.named_parameters()}
    bench.note("zero3_loss_diff", abs(float(bench.summed(part)) / bench.ranks - float(total.detach())))
    bench.note("zero3_grad_diff", difference(gradients(alone), found))


def speed(bench: Bench, total: int, way: str) -> None:
    """Tokens/s of each GPU on the slice: alone, sharing a pack (sequence), or with a pack each under ZeRO-3."""
    from nanoalign.models.known import KNOWN
    from nanoalign.models.sequence_parallel import parallelize

    settings: dict[str, Any] = SMALL if bench.arguments.tiny else dict(KNOWN["nvidia/NVIDIA-Nemotron-Nano-12B-v2-Base"])
    if not bench.arguments.tiny:
        settings |= {"hybrid_override_pattern": "M-M-M*M-", "vocab_size": 1024, "chunk_size": 128}
        settings.pop("model_type", None)
    cuda = bench.device.type == "cuda"
    loss: Any = PackLoss(bench.model(settings, torch.bfloat16, fast=True))
    batch = bench.pack(total, settings["vocab_size"], seed=bench.rank if way == "zero3" else 0, mean=6500)
    if way == "sequence":
        parallelize(loss.model, dist.group.WORLD)
        batch = bench.shard(batch)
    engine = bench.engine(loss) if way == "zero3" else None
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for step in range(1 + bench.arguments.steps):
        if way != "one":
            dist.barrier()
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        value = (engine or loss)(**batch)
        if engine is not None:
            engine.backward(value)
            engine.optimizer.zero_grad()
        else:
            value.backward()
            if way == "sequence":  # as data parallelism does, once per step
                for weight in loss.parameters():
                    dist.all_reduce(weight.grad)
            if step < bench.arguments.steps:
                loss.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    best = min(seconds[1:])
    share = bench.ranks if way == "sequence" else 1
    bench.note(f"{way}.{total}.tokens_per_s_per_gpu", total / share / best)
    bench.note(f"{way}.{total}.first_step_s", seconds[0])
    if cuda:
        bench.note(f"{way}.{total}.peak_gb", torch.cuda.max_memory_allocated() / 1e9)
    base = bench.figures.get(f"two_gpu.one.{total}.tokens_per_s_per_gpu")
    if way != "one" and isinstance(base, float):
        ratio = total / share / best / base
        bench.note(f"{way}.{total}.scaling", ratio)
        if way == "sequence":
            bench.note("scaling", ratio)
    if way == "one" and total == min(bench.arguments.lengths):
        bench.one = (float(value.detach()), gradients(loss))  # type: ignore[attr-defined]
    if way == "sequence" and total == min(bench.arguments.lengths) and hasattr(bench, "one"):
        bench.note("bf16_loss_diff", abs(float(bench.summed(value)) - bench.one[0]))
        bench.note("bf16_grad_diff", difference(bench.one[1], gradients(loss)))
        del bench.one


def worker(arguments: argparse.Namespace) -> None:
    """All measurements, in one process per GPU."""
    import transformers

    transformers.logging.set_verbosity_error()
    if arguments.tiny:
        import deepspeed.ops

        torch.set_num_threads(1)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles collectives for two minutes
    else:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.backends.cuda.matmul.allow_tf32 = False
    dist.init_process_group("gloo" if arguments.tiny else "nccl", timeout=timedelta(seconds=arguments.limit))
    bench = Bench(arguments)
    plan: list[tuple[str, Callable[..., None], tuple]] = [("exact_sequence", exact_sequence, ())]
    ways = [(way, total) for total in sorted(arguments.lengths) for way in ("one", "sequence")]
    plan += [(f"{way}.{total}", speed, (total, way)) for way, total in ways]
    plan += [("exact_zero3", exact_zero3, ()), ("zero3", speed, (min(arguments.lengths), "zero3"))]
    for name, measurement, more in plan:
        bench.attempt(name, partial(measurement, bench, *more))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[65536, 131072])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--limit", type=float, default=170, help="seconds after which the processes are ended")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true", help="two CPU processes, small packs")
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        worker(arguments)
        return
    if arguments.tiny:
        arguments.lengths, arguments.steps = [512, 1024], 1
    arguments.part = (arguments.json or Path("two_gpu.json")).with_suffix(".part.json")
    arguments.part.write_text("{}")
    options = ["--part", str(arguments.part), "--steps", str(arguments.steps), "--limit", str(arguments.limit)]
    options += ["--tiny"] * arguments.tiny + ["--lengths", *map(str, arguments.lengths)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, *options]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"NCCL_NVLS_ENABLE": "0", "OMP_NUM_THREADS": "4", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    start = time.perf_counter()
    process = subprocess.Popen(launch, env=env)
    try:
        process.wait(arguments.limit)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its workers
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
    figures = json.loads(arguments.part.read_text()) | {"two_gpu.wall_s": time.perf_counter() - start}
    if arguments.json:
        setting = {"torch": torch.__version__, "arguments": vars(arguments)}
        if torch.cuda.is_available():
            setting["device"] = torch.cuda.get_device_name()
        arguments.json.write_text(json.dumps({"setting": setting, "figures": figures}, indent=2, default=str) + "\n")
    print()
    for name, value in figures.items():
        print(f"{name.removeprefix('two_gpu.'):40} {value if isinstance(value, str) else f'{value:.6g}'}")


if __name__ == "__main__":
    main()
