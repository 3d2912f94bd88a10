"""A colocated vLLM in each of two gloo processes: python vllm_ranks.py BASE FOLDER RANKS"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

import torch

from nanoalign.data_recipes.chat import chat_format
from nanoalign.models.loading import load_tokenizer
from nanoalign.rollouts import open_engine
from nanoalign.rollouts.base import Request, Sampling
from tests.ranks import on_ranks
from tests.rollouts.engines import changed_model

BASE, FOLDER, RANKS = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])


def work(rank: int) -> None:
    if RANKS > 1:
        torch.distributed.init_process_group("gloo")
    tokenizer = load_tokenizer(BASE)
    engine = open_engine("vllm", BASE, tokenizer, chat_format("nemotron-nano-v2"), batch_size=8, max_length=128)
    ids = tuple(tokenizer.encode("<SPECIAL_11>User\nsay words\n<SPECIAL_11>Assistant\n<think>\n"))
    asked = [Request(ids, Sampling(12, seed=seed, thinking_budget=4, grace=2)) for seed in range(4)]
    found = [engine.generate(asked)]
    if rank == 0:  # alone: another process neither waits for it nor gets these weights
        engine.load_weights(changed_model(BASE).state_dict().items())
        found.append(engine.generate(asked))
        engine._start_anew()  # and so is an engine that was lost
        found.append(engine.generate(asked))
    if RANKS > 1:
        total = torch.ones(1)
        torch.distributed.all_reduce(total)  # the trainer's group is as it was
        assert total == RANKS
    found.append(engine.generate(asked))
    (FOLDER / f"{RANKS}-{rank}.json").write_text(
        json.dumps([[(each.token_ids, each.forced) for each in answers] for answers in found])
    )
    engine.close()


if __name__ == "__main__":
    sys.exit(not on_ranks(RANKS, work))
