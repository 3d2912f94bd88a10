"""Chat formats: how a conversation is written as text, which parts of it are trained, and how answers are read back."""

from typing import TYPE_CHECKING

from nanoalign.common.printable import known
from nanoalign.common.table import Entry

if TYPE_CHECKING:
    from nanoalign.data_recipes.chat.base import ChatFormat

CHAT_FORMATS = {
    "nemotron-nano-v2": Entry("nanoalign.data_recipes.chat.nemotron:NemotronNanoV2", "as it is trained here"),
    "nemotron-nano-v2-reference": Entry(
        "nanoalign.data_recipes.chat.nemotron:NemotronNanoV2Reference", "the released models' template, byte for byte"),
    "chatml": Entry("nanoalign.data_recipes.chat.chatml:ChatML", "plain ChatML"),
    "smollm2": Entry("nanoalign.data_recipes.chat.chatml:smollm2", "ChatML with SmolLM2's default system text"),
    "qwen3": Entry("nanoalign.data_recipes.chat.chatml:Qwen3", "Qwen3's own template"),
    "llama3": Entry("nanoalign.data_recipes.chat.llama3:Llama3", "Llama 3's, with thinking"),
}  # fmt: skip
"""``code`` makes a format from nothing."""


def chat_format(name: str) -> "ChatFormat":
    """The chat format of that name, or ``hf:FOLDER_OR_HUB_ID`` for the chat template of a tokenizer.

    Raises ConfigError for an unknown name, with the nearest valid one.
    """
    if name.startswith("hf:"):
        from nanoalign.data_recipes.chat.template import HFTemplate

        return HFTemplate.load(name)
    made: ChatFormat = CHAT_FORMATS[known("chat format", name, CHAT_FORMATS)].load()()
    return made
