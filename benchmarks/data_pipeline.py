"""What rendering and masking cost on top of tokenizing, and whether a mixture of any size fits one machine.

    python benchmarks/data_pipeline.py [--json FILE] [--sizes 10000 100000 1000000] [--rounds 5]

Against the peer: the same rendered texts through ``tokenizers`` alone (``encode_batch`` and the ids fetched), and
conversations through ``data_recipes.tokenize`` (render, encode, masks), in turn, best of ``--rounds``; the ratio is the
peer's time over ours, by the clock and by processor time. At each size, in a process of its own:
``data_recipes.prepared.prepare`` from one JSONL file to Arrow shards, with its wall time, its processor time (which
other programs on the machine disturb less) and its peak resident memory. Texts are made up of a Zipf vocabulary, a seed
fixed. The figures are written after every size.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.prepared import prepare
from nanoalign.data_recipes.rows import to_row
from nanoalign.data_recipes.tokenize import ExampleEncoder

CHAT = "nemotron-nano-v2"
BATCH = 1000
WORDS = 10
"""Of reasoning in a sample of the runs at size, with a question of 20 words and an answer of 10: short samples show
best what a sample costs apart from its tokens."""
SEED = 5


def vocabulary() -> tuple[list[str], list[float]]:
    """20,000 made-up words and their Zipf weights."""
    rng = Random(SEED)
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in "aeiou"]
    words = ["".join(rng.choices(syllables, k=rng.randrange(1, 5))) for _ in range(20_000)]
    return words, [1 / (rank + 10) for rank in range(len(words))]


def samples(count: int, words: int) -> "list[Conversation]":
    """Conversations with a question, reasoning of about ``words`` words and an answer."""
    rng = Random(SEED)
    known, weights = vocabulary()
    made = []
    for number in range(count):
        drawn = rng.choices(known, weights, k=words + 30)
        question, reasoning, answer = drawn[:20], drawn[30:], drawn[20:30]
        messages = (
            Message("user", f"{number}: {' '.join(question)}?"),
            Message("assistant", " ".join(answer) + ".", " ".join(reasoning)),
        )
        made.append(Conversation(messages, domain="synthetic", source="synthetic", licence="CC0-1.0"))
    return made


def tokenizer() -> Any:
    """A byte-level BPE of 16,000 tokens with GPT-2's splitting, trained on such texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    chat = chat_format(CHAT)
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [*chat.special_tokens, chat.think_open, chat.think_close]
    trainer = trainers.BpeTrainer(
        vocab_size=16_000, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    trained.train_from_iterator((m.content for c in samples(1000, 100) for m in c.messages), trainer)
    return trained


def against_tokenizers(rounds: int) -> dict[str, float]:
    """Seconds of both for the same text, and the ratio."""
    chat, plain = chat_format(CHAT), tokenizer()
    conversations = samples(1500, 300)
    encoder = ExampleEncoder(chat, plain)
    texts = ["".join(span.text for span in spans) for c in conversations for spans in chat.examples(c)]

    def peer() -> int:
        batches = (texts[i : i + BATCH] for i in range(0, len(texts), BATCH))
        return sum(len(e.ids) for batch in batches for e in plain.encode_batch(batch, add_special_tokens=False))

    def ours() -> int:
        batches = (conversations[i : i + BATCH] for i in range(0, len(conversations), BATCH))
        return sum(len(e.input_ids) for batch in batches for each in encoder.encode(batch) for e in each)

    seconds: dict[str, list[float]] = {"peer": [], "ours": []}
    cpu_seconds: dict[str, list[float]] = {"peer": [], "ours": []}
    tokens = peer()
    assert ours() == tokens
    for _ in range(rounds):
        for name, run in (("peer", peer), ("ours", ours)):
            started, cpu = time.perf_counter(), time.process_time()
            run()
            seconds[name].append(time.perf_counter() - started)
            cpu_seconds[name].append(time.process_time() - cpu)
    best = {name: min(times) for name, times in seconds.items()}
    return {
        "render_vs_tokenizers": best["peer"] / best["ours"],
        "render_vs_tokenizers_cpu": min(cpu_seconds["peer"]) / min(cpu_seconds["ours"]),
        "tokenizers_tokens_per_s": tokens / best["peer"],
        "pipeline_tokens_per_s": tokens / best["ours"],
    }


def at_size(size: int) -> dict[str, float]:
    """Prepares ``size`` synthetic samples in this process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        # The rows are written by another process, so that making them does not count as memory here.
        subprocess.run([sys.executable, __file__, "--write", str(path), "--sizes", str(size)], check=True)
        plain = tokenizer()
        started, cpu = time.perf_counter(), time.process_time()
        data = prepare(Mixture(sources={f"file:{path}": size}), chat_format(CHAT), plain, Path(folder) / "set")
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_rss_mb": peak,
        "tokens": data.index["tokens"],
        "examples": len(data),
    }


def write(path: Path, size: int) -> None:
    """Writes ``size`` rows, 10,000 different ones in turn under a number of their own."""
    rows = [to_row(conversation) for conversation in samples(min(size, 10_000), WORDS)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(size):
            row = rows[number % len(rows)]
            row["id"] = str(number)
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write, arguments.sizes[0])
        return
    if arguments.one:
        print(json.dumps(at_size(arguments.one)))
        return
    figures = against_tokenizers(arguments.rounds)
    print(f"tokenizers alone     {figures['tokenizers_tokens_per_s']:12,.0f} tokens/s")
    print(f"render, encode, mask {figures['pipeline_tokens_per_s']:12,.0f} tokens/s")
    print(f"ratio                {figures['render_vs_tokenizers']:12.2f}")
    print(f"ratio, processor     {figures['render_vs_tokenizers_cpu']:12.2f}", flush=True)
    for size in arguments.sizes:
        command = [sys.executable, __file__, "--one", str(size)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result = json.loads(output.splitlines()[-1])
        name = f"{size:.0e}".replace("e+0", "e")
        figures[f"peak_rss_mb_{name}"] = result["peak_rss_mb"]
        figures[f"seconds_{name}"] = result["seconds"]
        figures[f"cpu_seconds_{name}"] = result["cpu_seconds"]
        figures["seconds_per_million"] = 1e6 * result["seconds"] / size
        figures["cpu_seconds_per_million"] = 1e6 * result["cpu_seconds"] / size
        print(
            f"{size:>10,} samples: {result['seconds']:8.1f} s, processor {result['cpu_seconds']:8.1f} s "
            f"({figures['cpu_seconds_per_million']:.0f} s a million), "
            f"{result['tokens'] / result['seconds']:10,.0f} tokens/s, peak {result['peak_rss_mb']:,.0f} MB",
            flush=True,
        )
        if arguments.json:
            write_record(arguments.json, figures)
    if arguments.json:
        write_record(arguments.json, figures)


def write_record(path: Path, figures: dict[str, float]) -> None:
    """The figures and what they depend on."""
    record = {
        "figures": figures,
        "command": " ".join(sys.argv),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("tokenizers", "pyarrow", "numpy")},
        "seed": SEED,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
