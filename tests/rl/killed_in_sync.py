"""A GRPO stage whose process is killed in the middle of a weight sync: ``killed_in_sync.py STAGE.json``.

The engine is an HF one with weights of its own: what matters is the trainer's death, not the engine's kind.
"""

import json
import os
import signal
import sys
from pathlib import Path

from nanoalign import rollouts
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.config import Mixture
from nanoalign.models.loading import load_model
from nanoalign.rl import grpo
from nanoalign.rl.config import GRPOStage

open_engine = rollouts.open_engine


def own_weights(kind, model, *args, **settings):
    """``vllm`` becomes an HF engine on a model of its own that dies with the process at the third sync."""
    if kind == "hf":
        return open_engine(kind, model, *args, **settings)
    engine = open_engine("hf", load_model(model), *args, batch_size=16)
    load, syncs = engine.load_weights, []

    def load_weights(tensors):
        syncs.append(list(tensors))
        if len(syncs) == job["dies_at_sync"]:
            load(syncs[-1][: len(syncs[-1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        load(syncs[-1])

    engine.load_weights = load_weights
    return engine


job = json.loads(Path(sys.argv[1]).read_text())
rollouts.open_engine = own_weights
folder = Path(job["folder"])
context = StageContext(
    "instruct", folder, {"from": Path(job["base"])}, "nemotron-nano-v2", 5, None, "cpu", log=StageLog(folder)
)
figures = grpo.run(GRPOStage.model_validate(job["stage"]), {"m": Mixture(sources={job["source"]: 8})}, context)
print(json.dumps(figures))
