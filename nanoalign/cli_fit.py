"""``nanoalign fit``: does a model fit a GPU, and how long and how many sequences may be. Without torch."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from nanoalign.common.printable import known, tokens

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def add_commands(app: typer.Typer) -> None:
    """Adds the command to `nanoalign`."""
    app.command()(fit)


def fit(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, a config.json, a hub id, builtin:NAME or pip:NAME.")
    ],
    context: Annotated[
        str, typer.Option(help="Tokens of a sequence, prompt and answer together: 131072 or 128k.")
    ] = "128k",
    memory: Annotated[str, typer.Option(help="What there is: 22GiB, 24GB.")] = "80GB",
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    weights: Annotated[str, typer.Option(help="bfloat16, float32, fp8, int8 or int4.")] = "bfloat16",
    cache: Annotated[str, typer.Option(help="Of keys and values: bfloat16, fp8, float32.")] = "bfloat16",
    state: Annotated[str, typer.Option(help="Of Mamba states: float32 or bfloat16.")] = "float32",
    step: Annotated[int, typer.Option(min=1, help="vLLM's max_num_batched_tokens.")] = 8192,
    prefix_caching: Annotated[
        bool, typer.Option(help="A second Mamba state a sequence, as vLLM's default has.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Bytes by part as JSON.")] = False,
) -> None:
    """Does a model fit, what is the longest context, how many sequences?

    Weights and caches follow from the configuration alone, laid out as vLLM does; activations and the runtime's own
    memory are estimates. Nothing is fetched. The exit status is 1 where it does not fit.
    """
    from nanoalign.common.errors import ConfigError
    from nanoalign.models.fit import Serving
    from nanoalign.models.fit import fit as fitted
    from nanoalign.models.footprint import BYTES

    for name in (weights, cache, state):
        known("type", name, BYTES)
    length = tokens(context)
    if length is None:
        raise ConfigError(f"--context {context}: give a number of tokens, as in 131072 or 128k")
    config = config_of(model)
    serving = Serving(weights, cache, state, step, prefix_caching=prefix_caching)
    found = fitted(config, length, bytes_of(memory), batch, serving)
    limit = config.get("max_position_embeddings")
    if as_json:
        print(json.dumps({"model": model, **found.as_dict(), "max_position_embeddings": limit}, indent=2))
    else:
        _show(model, found, limit)
    if not found.fits:
        raise typer.Exit(1)


def bytes_of(text: str) -> float:
    """Bytes of ``22GiB`` or ``24GB``. Raises ConfigError for anything else."""
    from nanoalign.common.errors import ConfigError

    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?)B\s*", text, re.IGNORECASE)
    if not found:
        raise ConfigError(f"--memory {text}: give a number with a unit, as in 22GiB or 24GB")
    return float(found[1]) * UNITS[found[2].upper()]


def config_of(spec: str) -> Mapping[str, Any]:
    """The configuration of a model that is here, in the hub's cache, or known by name.

    Raises:
        CheckpointError: it is none of these.
    """
    from nanoalign.common.errors import CheckpointError
    from nanoalign.common.printable import nearest
    from nanoalign.models.known import KNOWN
    from nanoalign.models.loading import local_folder
    from nanoalign.models.model_folder import read_config

    if Path(spec).is_file():
        return read_config(Path(spec).parent, Path(spec).name)
    folder = local_folder(spec)
    if folder is not None and (folder.is_dir() or spec not in KNOWN):
        return read_config(folder)
    if spec in KNOWN:
        return KNOWN[spec]
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(spec, "config.json")
    if not isinstance(cached, str):
        raise CheckpointError(
            f"{spec}: neither here, nor in the hub's cache, nor known by name{nearest(spec, KNOWN)}; give a folder or "
            f"a config.json, or fetch it: hf download {spec} config.json"
        )
    return read_config(Path(cached).parent)


def _show(model: str, found: Any, limit: int | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("part", "GiB", title=Text(f"{model}: {found.batch} x {found.context:,} tokens"))
    table.columns[1].justify = "right"

    def row(name: str, size: float) -> None:
        table.add_row(name, f"{size / 2**30:.2f}")

    for name, (many, size) in found.blocks.items():
        if size:
            row(f"weights: {f'{many} {name} blocks' if name in ('mamba', 'attention', 'mlp') else name}", size)
    row("keys and values", found.kv)
    if found.ssm:
        row("Mamba states", found.ssm)
        row("convolution inputs", found.conv)
    row(
        f"vLLM's whole pages ({found.pages.tokens:,} tokens) beyond that",
        found.cache - found.kv - found.ssm - found.conv,
    )
    row("activations of a step (estimate)", found.activations)
    row("CUDA, graphs, fragments (estimate)", found.runtime)
    table.add_section()
    row("in all", found.total)
    row("there is", found.memory)
    console = Console()
    console.print(table)
    over = "" if limit is None or found.largest_context <= limit else f" (the model's own limit is {limit:,})"
    if limit is not None and found.context > limit:
        console.print(Text(f"The model itself takes no more than {limit:,} tokens (max_position_embeddings)."))
    console.print(Text(
        f"{'It fits' if found.fits else 'It does NOT fit'}. Largest context of {found.batch} at once: "
        f"{found.largest_context:,} tokens{over}. Largest batch at {found.context:,} tokens: {found.largest_batch:,}."
    ))  # fmt: skip
