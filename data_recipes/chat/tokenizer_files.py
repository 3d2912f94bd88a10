"""What a chat template needs of a tokenizer's folder, read without torch: its template and its special tokens.

The template is rendered by transformers' own renderer (``render_jinja_template``).
"""

import json
from pathlib import Path
from typing import Any

from nanoalign.common.errors import CheckpointError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TemplateFiles:
    """The part of a transformers tokenizer that :class:`data_recipes.chat.template.HFTemplate` uses."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError where the folder has no readable tokenizer settings."""
        settings = _json(folder / "tokenizer_config.json")
        named = {**_json(folder / "special_tokens_map.json"), **settings}
        self.special_tokens_map = {key: text for key in NAMED if (text := _text(named.get(key)))}
        self.eos_token = self.special_tokens_map.get("eos_token")
        more = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
        added = [each for each in _json(folder / "tokenizer.json").get("added_tokens", []) if each.get("special")]
        tokens = [*self.special_tokens_map.values(), *map(_text, more if isinstance(more, list) else more.values())]
        self.all_special_tokens = list(dict.fromkeys(filter(None, [*tokens, *(each["content"] for each in added)])))
        self.chat_template = one_template(_templates(folder, settings))

    def apply_chat_template(
        self, messages: list[dict[str, Any]], *, tools: Any, tokenize: bool, add_generation_prompt: bool, **switch: Any
    ) -> str:
        """As transformers' method of this name, to text."""
        from transformers.utils.chat_template_utils import render_jinja_template

        assert not tokenize
        texts, _ = render_jinja_template(
            [messages], tools=tools, chat_template=self.chat_template, add_generation_prompt=add_generation_prompt,
            **self.special_tokens_map, **switch,
        )  # fmt: skip
        return str(texts[0])


def one_template(templates: Any) -> str:
    """One text of a tokenizer's template or templates: with ``tool_use`` beside ``default`` the tools decide, as they
    do in transformers."""
    if not isinstance(templates, dict):
        return templates or ""
    default = templates.get("default") or ""
    if "tool_use" not in templates:
        return default
    return f"{{%- if tools -%}}{templates['tool_use']}{{%- else -%}}{default}{{%- endif -%}}"


def _templates(folder: Path, settings: dict[str, Any]) -> Any:
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        found = {"default": beside.read_text(encoding="utf-8")}
        more = (folder / "additional_chat_templates").glob("*.jinja")
        return {**found, **{path.stem: path.read_text(encoding="utf-8") for path in more}}
    written = settings.get("chat_template")
    return {each["name"]: each["template"] for each in written} if isinstance(written, list) else written


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        if path.name == "tokenizer_config.json":
            raise CheckpointError(f"{path.parent}: no tokenizer (there is no {path.name})")
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    return value if isinstance(value, dict) else {}


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else token or ""
