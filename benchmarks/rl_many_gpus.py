"""Training of GRPO alone, on given completions of mixed length: packed against padded, and one GPU against several.

    python -m benchmarks.rl_many_gpus packed --model hybrid          # one GPU: both ways in one run
    python -m benchmarks.rl_many_gpus scaling --gpus 4               # the same step on one GPU and on four

Weights are random (a NemotronH of 1.5 billion weights, or SmolLM2-135M's shape); prompts of 100 to 600 tokens,
completions log-normal about 500, to 4,096, as reasoning traces are. Speed is trained tokens a second over steps after
the first two; the padded side has the micro-batch that was fastest of those that fit. Prints one JSON object.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from nanoalign.common.stage import StageLog
from nanoalign.models.config import Training
from nanoalign.models.hybrid import install
from nanoalign.rl.collect import Collected
from nanoalign.rl.config import GRPOStage
from nanoalign.rl.grpo_trainer import grpo_arguments, make_trainer
from nanoalign.rollouts.config import Rollouts

GROUP, LONGEST, STEPS = 8, 4096, 6


class Padding:
    """All that the trainer asks of a tokenizer."""

    pad_token_id = 0

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None: ...


def random_model(name: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, NemotronHConfig, NemotronHForCausalLM

    torch.manual_seed(0)
    if name == "hybrid":
        config = NemotronHConfig(
            vocab_size=131_072, hidden_size=2048, intermediate_size=8192, hybrid_override_pattern="M-M-M*-M-M-M*-M-M-",
            mamba_num_heads=64, mamba_head_dim=64, ssm_state_size=128, n_groups=8, chunk_size=128,
            num_attention_heads=16, num_key_value_heads=4, head_dim=128, pad_token_id=0,
        )  # fmt: skip
        model = NemotronHForCausalLM(config)
    elif name == "llama":
        config = LlamaConfig(
            vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, tie_word_embeddings=True, pad_token_id=0,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    else:
        config = LlamaConfig(
            vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, pad_token_id=0,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    install(model)
    return model


def completions(step: int, first: int, count: int, whole: int, vocabulary: int, longest: int) -> Collected:
    """This process's part of a step's ``whole`` completions."""
    generator = random.Random(step)
    groups = [
        [generator.randrange(1, vocabulary) for _ in range(generator.randint(longest // 40, longest // 7))]
        for _ in range(whole // GROUP)
    ]
    lengths = [min(longest, max(4, int(generator.lognormvariate(0, 0.9) * longest / 8))) for _ in range(whole)]
    answers = [[generator.randrange(1, vocabulary) for _ in range(length)] for length in lengths]
    return Collected(
        [groups[place // GROUP] for place in range(whole)], answers, [[0.0] * length for length in lengths],
        [[1] * length for length in lengths], {"task": [generator.random() for _ in range(whole)]},
    ).part(first, count)  # fmt: skip


def train(model: str, batch: int, micro: int | None, pack_tokens: int | None, longest: int) -> dict[str, float]:
    """Median seconds of a step, trained tokens a second and the peak of the GPU's memory."""
    stage = GRPOStage(**{
        "kind": "grpo", "from": "base", "data": "prompts", "reward": {"task": 1.0}, "group_size": GROUP,
        "rollouts": Rollouts(max_tokens=longest), "pack_tokens": pack_tokens,
        "train": Training(learning_rate=1e-6, batch_size=batch, micro_batch_size=micro, steps=STEPS,
                          dtype="bfloat16", gradient_checkpointing=True),
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        policy = random_model(model)
        drawn = [completions(step, 0, batch, batch, policy.config.vocab_size, longest) for step in range(STEPS)]
        trainer = make_trainer(
            policy, Padding(), stage,  # type: ignore[arg-type]
            grpo_arguments(stage, Path(folder) / "checkpoints", "auto", 0, STEPS),
            lambda step, first, count: drawn[step].part(first, count), StageLog(Path(folder)),
        )  # fmt: skip
        trainer.train_or_resume()
        rows = [row for row in trainer.state.log_history if "step_time" in row][2:]
    seconds = statistics.median(row["step_time"] for row in rows)
    tokens = statistics.fmean(sum(map(sum, each.trained)) for each in drawn[2:])
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
    return {"step_s": seconds, "tokens_per_s": tokens / seconds, "peak_gb": peak}


def apart(arguments: list[str], gpus: int = 1) -> dict[str, float] | None:
    """One measurement in a process, or several, of its own; None where it fails, as for want of memory."""
    launcher = [sys.executable] if gpus == 1 else [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"
    ]  # fmt: skip
    all_gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7").split(",")
    visible = ",".join(all_gpus[:gpus])
    run = subprocess.run(
        [*launcher, "-m", "benchmarks.rl_many_gpus", "one", *arguments], capture_output=True, text=True, check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": visible, "OMP_NUM_THREADS": "4"},
    )  # fmt: skip
    found = [line for line in run.stdout.splitlines() if line.startswith("{")]
    if run.returncode or not found:
        print(run.stderr[-1500:], file=sys.stderr, flush=True)
        return None
    result: dict[str, float] = json.loads(found[-1])
    print(arguments, gpus, result, file=sys.stderr, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["packed", "scaling", "one"])
    parser.add_argument("--model", default="hybrid", choices=["hybrid", "llama", "tiny"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--longest", type=int, default=LONGEST)
    parser.add_argument("--micro", type=int, nargs="*", default=[4, 8, 16])
    parser.add_argument("--pack-tokens", type=int, default=16_384)
    parser.add_argument("--gpus", type=int, default=1)
    options = parser.parse_args()
    shared = ["--model", options.model, "--batch", str(options.batch), "--longest", str(options.longest)]
    packed = [*shared, "--pack-tokens", str(options.pack_tokens), "--micro"]
    if options.part == "one":
        micro = options.micro[0] if options.micro else None
        found = train(options.model, options.batch, micro, None if micro else options.pack_tokens, options.longest)
        if int(os.environ.get("RANK", "0")) == 0:
            print(json.dumps(found), flush=True)
        return
    figures: dict[str, Any] = {}
    if options.part == "packed":
        ours = apart(packed)
        padded = {micro: apart([*shared, "--micro", str(micro)]) for micro in options.micro}
        best = max((each for each in padded.values() if each), key=lambda each: each["tokens_per_s"], default=None)
        for name, side in (("packed", ours), ("padded", best)):
            figures |= {f"{name}.{key}": value for key, value in (side or {}).items()}
        if ours and best:
            figures["packed_ratio_vs_padded"] = ours["tokens_per_s"] / best["tokens_per_s"]
    else:
        alone, together = apart(packed), apart(packed, options.gpus)
        for name, side in (("one", alone), (f"gpus_{options.gpus}", together)):
            figures |= {f"{name}.{key}": value for key, value in (side or {}).items()}
        if alone and together:
            figures[f"train_scaling_1_to_{options.gpus}"] = together["tokens_per_s"] / alone["tokens_per_s"]
    print(json.dumps({f"{options.model}.{name}": value for name, value in figures.items()}), flush=True)


if __name__ == "__main__":
    main()
