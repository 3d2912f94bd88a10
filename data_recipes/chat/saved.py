"""The Jinja chat templates that go with saved models: transformers and vLLM then render what was trained.

``signals.jinja`` holds what all formats share, the other files one format each; a template is both in one text,
preceded by the format's settings (``ChatFormat.template``).
"""

import shutil
from pathlib import Path

from nanoalign.common.files import atomic_file
from nanoalign.data_recipes.chat.base import ChatFormat


def save_chat_template(chat: ChatFormat, folder: Path) -> None:
    """Writes the template into a model's folder, under the name by which transformers and vLLM find it, in place of
    what the base model's tokenizer brought along (several templates, where it has one for tools)."""
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    with atomic_file(folder / "chat_template.jinja") as temporary:
        temporary.write_text(chat.template(), encoding="utf-8")
