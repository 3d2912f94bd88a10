"""Samples as the model sees them, in the terminal: what is trained in green, what is context in grey."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from nanoalign.common.printable import printable
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.tokenize import Example, encode_batch

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

TRAINED = "bold green"
CONTEXT = "bright_black"


def show(
    conversations: Sequence[Conversation],
    chat: ChatFormat,
    tokenizer: Any,
    console: "Console",
    packs: Iterable[Sequence[int]] | None = None,
) -> None:
    """Prints each example of each conversation with its loss mask in colour.

    ``packs`` groups the examples, numbered through all conversations, as packing puts them into rows; each pack then is
    under a rule with its token count.
    """
    from rich.text import Text

    encoded = encode_batch(conversations, chat, tokenizer)
    examples = [(c, number, len(each), e) for c, each in zip(conversations, encoded) for number, e in enumerate(each)]
    for number, pack in enumerate(packs if packs is not None else [range(len(examples))]):
        if packs is not None:
            tokens = sum(len(examples[i][3].input_ids) for i in pack)
            console.rule(f"pack {number}: {len(pack)} examples, {tokens} tokens", style="cyan")
        for index in pack:
            conversation, part, parts, example = examples[index]
            facts = [conversation.source, conversation.domain, conversation.language, conversation.licence]
            which = f"example {part + 1} of {parts}" if parts > 1 else ""
            count = f"{len(example.input_ids)} tokens, {sum(example.loss_mask)} trained"
            header = " · ".join(fact for fact in (*facts, conversation.id, which, count) if fact)
            console.print(Text(printable(header), style="bold cyan"))
            console.print(coloured(example, tokenizer), soft_wrap=True)
            console.print()


def coloured(example: Example, tokenizer: Any) -> "Text":
    """The example's text, decoded run by run of its loss mask, in the colours above."""
    from rich.text import Text

    text = Text()
    pairs = zip(example.input_ids, example.loss_mask, strict=True)
    for trained, run in groupby(pairs, key=lambda pair: pair[1]):
        said = printable(tokenizer.decode([token for token, _ in run]))
        text.append(said, style=TRAINED if trained else CONTEXT)
    return text
