"""Chat formats: how a conversation is written as text, which parts of it are trained, and how answers are read back."""

from typing import TYPE_CHECKING

from nanoalign.common.errors import ConfigError
from nanoalign.common.text import nearest
from nanoalign.data_recipes.chat.chatml import ChatML, Qwen3
from nanoalign.data_recipes.chat.llama3 import Llama3
from nanoalign.data_recipes.chat.nemotron import NemotronNanoV2, NemotronNanoV2Reference

if TYPE_CHECKING:
    from nanoalign.data_recipes.chat.base import ChatFormat

_ALL: "tuple[ChatFormat, ...]" = (
    NemotronNanoV2(),
    NemotronNanoV2Reference(),
    ChatML(),
    ChatML("smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    Qwen3(),
    Llama3(),
)
FORMATS = {each.name: each for each in _ALL}


def chat_format(name: str) -> "ChatFormat":
    """The chat format of that name, or ``hf:FOLDER_OR_HUB_ID`` for the chat template of a tokenizer.

    Raises ConfigError for an unknown name, with the nearest valid one.
    """
    if name.startswith("hf:"):
        from nanoalign.data_recipes.chat.template import HFTemplate

        return HFTemplate.load(name)
    if name not in FORMATS:
        raise ConfigError(f"unknown chat format `{name}`{nearest(name, [*FORMATS, 'hf:FOLDER_OR_HUB_ID'])}")
    return FORMATS[name]
