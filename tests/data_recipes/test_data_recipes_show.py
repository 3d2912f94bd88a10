"""What is shown and counted is what is trained."""

from collections import Counter
from io import StringIO
from typing import Any

from rich.console import Console

from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.selection import MixtureReport
from nanoalign.data_recipes.show import CONTEXT, TRAINED, coloured, show
from nanoalign.data_recipes.sources import LoadReport
from nanoalign.data_recipes.stats import stats, tables
from nanoalign.data_recipes.tokenize import encode_batch

TALK = Conversation(
    (
        Message("user", "2+2?"),
        Message("assistant", "4", "two and two"),
        Message("user", "[b]?"),
        Message("assistant", "é 🙂"),
    ),
    domain="math",
    source="here",
    licence="MIT",
)
PROMPT = Conversation((Message("user", "alone"),), domain="instruction")


def test_colours_follow_the_loss_mask(gpt2_like: Any) -> None:
    chat = chat_format("nemotron-nano-v2")
    [[first, second]] = encode_batch([TALK], chat, gpt2_like)
    for example, spans in zip((first, second), chat.examples(TALK), strict=True):
        text = coloured(example, gpt2_like)
        assert text.plain == "".join(span.text for span in spans)
        pieces = [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]
        assert pieces == [(span.text, TRAINED if span.trained else CONTEXT) for span in spans]


def test_show_tells_packs_and_counts(gpt2_like: Any) -> None:
    console = Console(file=StringIO(), width=100)
    show([TALK, TALK], chat_format("nemotron-nano-v2"), gpt2_like, console, packs=[[0, 3], [1, 2]])
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "pack 0: 2 examples" in printed and "pack 1" in printed
    assert printed.count("example 1 of 2") == 2 and "[b]?" in printed and "math · en · MIT" in printed


def test_stats_are_exact(gpt2_like: Any) -> None:
    chat = chat_format("nemotron-nano-v2")
    figures = stats([TALK, TALK, PROMPT], chat, gpt2_like)
    examples = [example for each in encode_batch([TALK], chat, gpt2_like) for example in each]
    assert figures.total.tokens == 2 * sum(len(example.input_ids) for example in examples)
    assert figures.by["domain"]["math"].trained_tokens == 2 * sum(sum(example.loss_mask) for example in examples)
    assert (figures.duplicates, figures.prompts_only, figures.with_reasoning, figures.total.examples) == (1, 1, 2, 4)
    assert sum(figures.histogram().values()) == 4 and figures.quantiles()["100%"] == figures.lengths[-1]
    console = Console(file=StringIO(), width=100, record=True)
    report = MixtureReport(
        [LoadReport("here", "train", 9, 7, 8, 1.14, bad=Counter({"bad JSON": 2}))], 8, Counter({"near duplicate": 5}),
        contamination=[(f"rows.jsonl:{n}", "gsm8k 7") for n in range(30)],
    )  # fmt: skip
    for table in tables(figures, report):
        console.print(table)
    page = console.export_html(clear=False)
    assert f"{figures.total.tokens:,}" in page
    for said in ("here (train)", "1.14", "near duplicate", "flag: repetition", "rows.jsonl:19", "and 10 more"):
        assert said in page
    assert "rows.jsonl:20" not in page
