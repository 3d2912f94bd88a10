"""The Jinja chat templates that go with saved models: transformers and vLLM then render what was trained.

``signals.jinja`` holds what all formats share, the other files one format each; a template is both in one text,
preceded by the format's settings. Tested to equal ``prompt`` and ``completion`` of every format.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from nanoalign.common.files import whole_file
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.chat.chatml import ChatML, Qwen3
from nanoalign.data_recipes.chat.llama3 import Llama3
from nanoalign.data_recipes.chat.nemotron import NemotronNanoV2, NemotronNanoV2Reference
from nanoalign.data_recipes.chat.template import HFTemplate


def chat_template(chat: ChatFormat) -> str:
    """The template to save beside a model that was trained in ``chat``; for ``hf:`` it is the tokenizer's own.

    It takes ``messages`` (with ``reasoning_content`` and ``tool_calls``), ``tools`` and ``enable_thinking``: left out,
    the last /think or /no_think in the messages decides. Raises TypeError for a format that has none.
    """
    match chat:
        case HFTemplate():
            return chat.tokenizer.chat_template
        case NemotronNanoV2():
            reference = isinstance(chat, NemotronNanoV2Reference)
            between = ["nemotron_reference"] if reference else []
            return _written(["signals", *between, "nemotron"], is_reference=reference)
        case ChatML():
            settings = {"default_system": chat.default_system, "is_qwen3": isinstance(chat, Qwen3)}
            return _written(["signals", "chatml"], **settings)
        case Llama3():
            return _written(["signals", "llama3"])
    raise TypeError(f"{chat.name}: no chat template is written for this format; add it in {__file__}")


def save_chat_template(chat: ChatFormat, folder: Path) -> None:
    """Writes the template into a model's folder, under the name by which transformers and vLLM find it, in place of
    what the base model's tokenizer brought along (several templates, where it has one for tools)."""
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    with whole_file(folder / "chat_template.jinja") as temporary:
        temporary.write_text(chat_template(chat), encoding="utf-8")


def _written(files: list[str], **settings: Any) -> str:
    header = "".join(f"{{%- set {name} = {_literal(value)} -%}}\n" for name, value in settings.items())
    return header + "".join(Path(__file__).with_name(f"{file}.jinja").read_text(encoding="utf-8") for file in files)


def _literal(value: str | bool | None) -> str:
    return "none" if value is None else json.dumps(value)
