"""The Jinja chat templates that go with saved models: transformers and vLLM then render what was trained.

``signals.jinja`` holds what all formats share, the other files one format each; a template is both in one text,
preceded by the format's settings (``ChatFormat.template``).
"""

import json
import shutil
from pathlib import Path

from nanoalign.common.files import atomic_file, write_json
from nanoalign.data_recipes.chat.base import ChatFormat


def save_chat_template(chat: ChatFormat, folder: Path) -> None:
    """Writes the template into a model's folder, under the name by which transformers and vLLM find it, in place of
    what the base model's tokenizer brought along (several templates, where it has one for tools)."""
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    with atomic_file(folder / "chat_template.jinja") as temporary:
        temporary.write_text(chat.template(), encoding="utf-8")


def save_stop_tokens(chat: ChatFormat, folder: Path) -> None:
    """Adds the format's stop tokens to a model's ``generation_config.json``: transformers and vLLM then end a turn
    where training ended it, whatever the base model's end token is."""
    settings, tokens = folder / "generation_config.json", folder / "tokenizer.json"
    if not (settings.is_file() and tokens.is_file()):
        return
    from tokenizers import Tokenizer

    tokenizer, config = Tokenizer.from_file(str(tokens)), json.loads(settings.read_text(encoding="utf-8"))
    known, stops = config.get("eos_token_id"), [tokenizer.token_to_id(text) for text in chat.stop]
    before = known if isinstance(known, list) else [known]
    ends = list(dict.fromkeys(token for token in (*stops, *before) if token is not None))
    if ends and ends != before:
        config["eos_token_id"] = ends if len(ends) > 1 else ends[0]
        config.pop("_from_model_config", None)  # else transformers makes the settings anew from config.json
        write_json(settings, config)
