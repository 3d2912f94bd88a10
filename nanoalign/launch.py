"""The command that starts a stage's process: on this machine, through Slurm or through Ray."""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanoalign.common.files import write_json
from nanoalign.recipe.schema import LocalLaunch, RayLaunch, Recipe, SlurmLaunch
from nanoalign.stages import STAGES


@dataclass(frozen=True)
class Command:
    """What to start, and what to add to its environment. It blocks until the stage is done."""

    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def command(recipe: Recipe, name: str, job: Path) -> Command:
    """The command of a stage. Writes ``deepspeed.json`` beside the job where ZeRO is used."""
    launch = recipe.launch
    stage = recipe.stages[name]
    parallel = STAGES[stage.kind].parallel
    module = ["-m", "nanoalign.stage_process", str(job.resolve())]
    # a package of the user's in the working folder, `datasets` say, is not to hide a library's
    environment = {"PYTHONSAFEPATH": "1"} | (deepspeed_environment(launch.zero, job) if parallel else {})
    match launch:
        case LocalLaunch():
            argv = [*_python(launch.processes if parallel else 1), *module]
        case RayLaunch():
            gpus = f"--entrypoint-num-gpus={gpus_of(stage, launch.gpus)}"
            inner = [*_python(launch.gpus if parallel else 1), *module]
            settings = [f"{key}={value}" for key, value in environment.items()]
            argv = ["ray", "job", "submit", f"--address={launch.address}", gpus, "--", "env", *settings, *inner]
        case SlurmLaunch():
            argv = [*_srun(launch, f"{recipe.name}-{name}", launch.nodes if parallel else 1, stage)]
            if parallel:
                python = shlex.join(_python(launch.gpus_per_node, launch.nodes))
                cluster = "--node-rank=$SLURM_NODEID --master-port=29517 --master-addr="
                head = "$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n1)"
                argv += ["bash", "-c", f"exec {python} {cluster}{head} {shlex.join(module)}"]
            else:
                argv += [sys.executable, *module]
    return Command(argv, environment)


def _python(processes: int, nodes: int = 1) -> list[str]:
    if processes * nodes == 1:
        return [sys.executable]
    alone = ["--standalone"] if nodes == 1 else [f"--nnodes={nodes}"]
    return [sys.executable, "-m", "torch.distributed.run", *alone, f"--nproc-per-node={processes}"]


def gpus_of(stage: Any, processes: int) -> int:
    """GPUs that a stage needs on each node: those of its processes, and up to the last that it names for vLLM servers
    or a reward model of its own (of several nodes all get as many: one `srun` asks for alike ones)."""
    engine = getattr(getattr(stage, "rollouts", None), "engine", None)
    named = [*(getattr(engine, "gpus", None) or ()), getattr(stage, "reward_gpu", None) or 0]
    return max(processes, max(named) + 1)


def _srun(launch: SlurmLaunch, job_name: str, nodes: int, stage: Any) -> list[str]:
    options: dict[str, Any] = {
        "job-name": job_name,
        "nodes": nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": gpus_of(stage, launch.gpus_per_node),
        "kill-on-bad-exit": 1,
        "partition": launch.partition,
        "account": launch.account,
        "time": launch.time,
    }
    return ["srun", *(f"--{option}={value}" for option, value in options.items() if value is not None)]


def deepspeed_environment(stage: int, job: Path) -> dict[str, str]:
    """The environment variables through which accelerate finds its DeepSpeed settings."""
    if stage == 0:
        return {}
    settings = job.with_name("deepspeed.json").resolve()
    auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": stage == 3}
    write_json(settings, {"zero_optimization": zero, "bf16": {"enabled": "auto"}, **dict.fromkeys(auto, "auto")})
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(settings)}
