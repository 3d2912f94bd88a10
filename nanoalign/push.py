"""``nanoalign push``: a finished stage's model, as it is, to a repository of the Hugging Face hub."""

from pathlib import Path
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.common.printable import known
from nanoalign.model_card import write_card
from nanoalign.models.loading import HUB_ID
from nanoalign.report.read import read_run


def push(run: Path, stage: str, to: str, *, public: bool = False, message: str | None = None) -> str:
    """Uploads ``run/stage/model`` to the hub's ``to`` (user/name), and returns the address of the commit.

    A repository that is not there yet is made, private unless ``public``. Raises ConfigError where the stage has no
    finished model, no token is known, the repository is public and ``public`` was not said, or the hub refuses.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    data = read_run(run)
    known("stage", stage, data.recipe.stages)
    record, folder = data.stages.get(stage), run / stage / "model"
    if record is None or not folder.is_dir():
        states = {name: found.state for name, found in data.begun.items()}
        why = "makes no model" if record is not None else f"is {states.get(stage, 'not run yet')}"
        raise ConfigError(f"{run}: stage {stage} {why}; a finished stage's model can be pushed")
    if not HUB_ID.fullmatch(to):
        raise ConfigError(f"--to {to}: expected USER/NAME")
    if get_token() is None:
        raise ConfigError("no token of the Hugging Face hub: run `hf auth login`, or set HF_TOKEN (with write access)")
    write_card(data.recipe, stage, record.record.figures, folder)
    try:
        return _upload(folder, to, public, message or f"{data.recipe.name}, stage {stage} (nanoalign)")
    except (HfHubHTTPError, OSError) as error:
        raise ConfigError(f"{to}: the hub did not take it: {str(error).strip().splitlines()[0]}") from error


def _upload(folder: Path, to: str, public: bool, message: str) -> str:
    from huggingface_hub import HfApi

    api: Any = HfApi()
    api.create_repo(to, private=not public, exist_ok=True)
    if not public and not api.repo_info(to).private:  # it was there before, and `private` said nothing
        raise ConfigError(f"{to} is a public repository; say --public to push there")
    return str(api.upload_folder(repo_id=to, folder_path=folder, commit_message=message))
