"""The process of one stage: ``python -m nanoalign.stage_process JOB.json``.

Exit status 0 with ``result.json`` written: done. 2: an error that the user can fix. Anything else: a crash, its
traceback in the log. The message of an error is told as failure.py says, by whichever process of the stage is first.
"""

import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from nanoalign import failure
from nanoalign.artifacts import finite
from nanoalign.common.errors import NanoalignError
from nanoalign.common.files import write_json
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.chat.saved import save_chat_template, save_stop_tokens
from nanoalign.model_card import write_card
from nanoalign.recipe.schema import Recipe
from nanoalign.stages import run_stage


def main() -> int:
    """Runs the job file's stage."""
    job_file = Path(sys.argv[1])
    job = json.loads(job_file.read_text(encoding="utf-8"))
    die_with_runner(job["runner"])
    folder = job_file.parent
    first = int(os.environ.get("RANK", "0")) == 0
    try:
        context = context_of(job, folder)
        recipe = Recipe.model_validate_json(json.dumps(job["recipe"]))
        figures = run_stage(recipe, context)
        if first and (folder / "model").is_dir():
            chat = chat_format(context.chat)
            save_chat_template(chat, folder / "model")
            save_stop_tokens(chat, folder / "model")
            write_card(recipe, context.name, finite(figures), folder / "model", context.data_root)
    except Exception as error:
        failure.tell(folder, error)
        if not isinstance(error, NanoalignError):
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if first:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        write_json(folder / "result.json", {"figures": finite(figures), "peak_rss_gb": peak / 1e9})
    return 0


def context_of(job: Mapping[str, Any], folder: Path) -> StageContext:
    """The stage's context; a base model named by its hub id is fetched here."""
    from nanoalign.models.loading import resolve

    return StageContext(
        name=job["stage"],
        folder=folder,
        inputs={role: resolve(model) for role, model in job["inputs"].items()},
        chat=job["recipe"]["chat"],
        seed=job["seed"],
        data_root=Path(job["data_root"]) if job["data_root"] else None,
        device=job["recipe"]["device"],
        log=StageLog(folder),
    )


def die_with_runner(runner: int | None) -> None:
    """Ends this process when the runner is gone, so that a killed runner leaves no orphan writing. ``runner`` is its
    process id, or None where it runs on another machine."""
    if runner is None:
        return

    def watch() -> None:
        try:
            while psutil.Process(runner).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.2)
        except psutil.NoSuchProcess:
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
