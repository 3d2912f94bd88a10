"""nanoalign's data and rewards inside NeMo-RL. Copied into an export; runs only where NeMo-RL is.

``register`` adds them to NeMo-RL without changing its code. Rows come tokenized, so that what is trained here is what
nanoalign trains, token for token; chat templates are not used.
"""

import json
from typing import Any

import ray
import torch
from datasets import load_dataset
from nemo_rl.data import processors
from nemo_rl.data import utils as data_utils
from nemo_rl.data.datasets import preference_datasets, response_datasets
from nemo_rl.data.datasets.raw_dataset import RawDataset
from nemo_rl.distributed.ray_actor_environment_registry import ACTOR_ENVIRONMENT_REGISTRY
from nemo_rl.distributed.virtual_cluster import PY_EXECUTABLES
from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn
from nemo_rl.environments.utils import register_env

from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.conversation import Message
from nanoalign.reward import Sample, make_reward
from nanoalign.reward.config import Judge

NAME = "nanoalign_nemo_rl"
"""This module's, in an export."""


class Rows(RawDataset):
    """The rows of ``data_path``, memory-mapped."""

    def __init__(self, data_path: str, **settings: Any) -> None:
        self.task_name = "nanoalign"
        self.val_dataset = None
        rows = load_dataset("json", data_files=data_path)["train"]
        self.dataset = rows.add_column("task_name", [self.task_name] * len(rows))


def sft_datum(row: dict, spec: Any, tokenizer: Any, longest: int, index: int, **unused: Any) -> dict:
    """An example; NeMo-RL trains on the "assistant" turns."""
    pieces = torch.tensor(row["input_ids"]).split(row["lengths"])
    roles = ["assistant" if trained else "user" for trained in row["trained"]]
    return _datum([_said(role, ids) for role, ids in zip(roles, pieces, strict=True)], longest, index)


def grpo_datum(row: dict, spec: Any, tokenizer: Any, longest: int, index: int) -> dict:
    """A prompt, and what the environment knows of it."""
    text = tokenizer.decode(row["prompt_ids"])
    datum = _datum([_said("user", torch.tensor(row["prompt_ids"]), text)], longest, index)
    known = {"thinking": row["thinking"], **json.loads(row["known"])}
    return datum | {"extra_env_info": known, "task_name": row["task_name"]}


def preference_datum(row: dict, spec: Any, tokenizer: Any, longest: int, index: int) -> dict:
    """A pair; NeMo-RL trains on the last message of each."""
    sides: dict = {}
    for side in ("chosen", "rejected"):
        said = [_said("user", torch.tensor(row["prompt_ids"])), _said("assistant", torch.tensor(row[f"{side}_ids"]))]
        datum = _datum(said, longest, index)
        sides |= {f"message_log_{side}": datum["message_log"], f"length_{side}": datum["length"]}
    return {**sides, "loss_multiplier": 1.0, "idx": index}


def _said(role: str, ids: torch.Tensor, text: str = "") -> dict:
    return {"role": role, "content": text, "token_ids": ids}


def _datum(message_log: list[dict], longest: int, index: int) -> dict:
    length = sum(len(message["token_ids"]) for message in message_log)
    if length > longest:
        raise ValueError(f"row {index} has {length} tokens, more than policy.max_total_sequence_length {longest}")
    return {"message_log": message_log, "length": length, "extra_env_info": None, "loss_multiplier": 1.0, "idx": index}


@ray.remote
class Rewards(EnvironmentInterface):
    """One turn: the answer is scored by the recipe's rewards, and the episode is over."""

    def __init__(self, config: dict) -> None:
        from transformers import AutoTokenizer

        judge = None if config["judge"] is None else Judge(**config["judge"])
        self.reward = make_reward(config["reward"], judge=judge)
        self.chat = chat_format(config["chat"])
        self.tokenizer = AutoTokenizer.from_pretrained(config["tokenizer"])
        self.max_tokens = config["max_tokens"]
        self.seen: dict[str, list[float]] = {name: [] for name in self.reward.weights}

    def step(self, message_log_batch: list[list[dict]], metadata: list[dict]) -> EnvironmentReturn:
        samples = [
            self.sample(log[-1]["content"], known) for log, known in zip(message_log_batch, metadata, strict=True)
        ]
        components = self.reward.components(samples)
        for name, scores in components.items():
            self.seen[name] += scores
        return EnvironmentReturn(
            observations=[{"role": "environment", "content": ""} for _ in samples],
            metadata=metadata,
            next_stop_strings=[None] * len(samples),
            rewards=torch.tensor(self.reward.combine(components)),
            terminateds=torch.ones(len(samples)),
            answers=[sample.answer.content for sample in samples],
        )

    def sample(self, text: str, known: dict) -> Sample:
        """NeMo-RL passes text without its special tokens: an unfinished turn is recognised by its length."""
        tokens = len(self.tokenizer.encode(text, add_special_tokens=False))
        return Sample(
            messages=tuple(Message(**message) for message in known["messages"]),
            answer=self.chat.parse(text, thinking=known["thinking"]),
            task=known["task"],
            finished=tokens < self.max_tokens,
            answer_tokens=tokens,
        )

    def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, float]]:
        """The mean of each reward since the last call."""
        means = {f"rewards/{name}": sum(scores) / len(scores) for name, scores in self.seen.items() if scores}
        self.seen = {name: [] for name in self.seen}
        return batch, means


def register(algorithm: str) -> None:
    """Makes the names known that the export's config uses."""
    for datasets in (response_datasets, preference_datasets):
        datasets.DATASET_REGISTRY[f"{NAME}.Rows"] = Rows  # v0.6.0 knows no dotted paths
    if algorithm == "sft":
        processors.register_processor("nanoalign_sft", sft_datum)
    elif algorithm == "grpo":
        processors.register_processor("nanoalign_grpo", grpo_datum)
        register_env("nanoalign", f"{NAME}.Rewards")
        ACTOR_ENVIRONMENT_REGISTRY[f"{NAME}.Rewards"] = PY_EXECUTABLES.SYSTEM
    else:
        if not hasattr(data_utils, "preference_preprocessor"):
            raise RuntimeError("this NeMo-RL builds preference data differently from v0.6")
        data_utils.preference_preprocessor = preference_datum  # it offers no registry for these
