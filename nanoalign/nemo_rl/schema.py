"""Every key of NeMo-RL's SFT, DPO and GRPO configs: its types, and whether a config must have it.

The tables ``keys_*.txt`` were made from three versions' sources, release v0.6.0 (5fb5889), release v0.7.0 and the main
branch of 2026-08-22 (7ea279a, whose package also calls itself 0.6.0): types are those of their TypedDicts and pydantic
models, and of the example config where these are silent; a key is required where the example without it does not
validate (57 keys of SFT, 62 of DPO, 98 of GRPO in v0.6.0, sections included; 48, 48 and 87 in v0.7.0). A line: ``key
types v0.6.0 v0.7.0 main``, with R for required, o for optional, - for absent.

NeMo-RL itself silently accepts unknown keys (``sft.max_num_stepz``), and in v0.6.0 checks no types; this does.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.common.printable import nearest

EXAMPLES = {"sft": "sft.yaml", "dpo": "dpo.yaml", "grpo": "grpo_math_1B.yaml"}
"""The example config, under examples/configs, that an export builds on."""
USED_UNCHECKED = {"grpo": ("policy.generation", "policy.draft", "policy.draft.enabled")}
"""Keys that its start script reads although the config validates without them."""


@dataclass(frozen=True)
class Key:
    """A key of a config. ``types`` are names of Python types, ``null``, ``any``, or quoted words."""

    types: tuple[str, ...]
    required: bool
    """In v0.6.0, and known to the later versions."""
    everywhere: bool
    """Known to all three versions."""


@cache
def known_keys(algorithm: str) -> Mapping[str, Key]:
    """The table of an algorithm, by dotted key."""
    table = {}
    for line in Path(__file__).with_name(f"keys_{algorithm}.txt").read_text(encoding="utf-8").splitlines():
        name, types, *versions = line.split(" ")
        everywhere = "-" not in versions
        required = everywhere and (versions[0] == "R" or name in USED_UNCHECKED.get(algorithm, ()))
        table[name] = Key(tuple(types.split("|")), required, everywhere)
    return table


def check_config(config: Mapping[str, Any], algorithm: str, *, exported: bool = False) -> None:
    """Checks the keys and values of a config, complete or partial; ``defaults`` and interpolations (``${...}``) pass.

    ``exported``: only what all versions know is allowed. Raises ConfigError that names every unknown key, with the
    nearest known one, and every value of a wrong type.
    """
    faults = list(_faults({key: value for key, value in config.items() if key != "defaults"}, algorithm, exported))
    if faults:
        raise ConfigError(f"no {algorithm} config of NeMo-RL v0.6:\n" + "\n".join(f"  {fault}" for fault in faults))


def require(config: Mapping[str, Any], algorithm: str) -> None:
    """Checks that a complete config, with its example merged in, has every required key. Raises ConfigError that names
    what is missing."""
    present = {path for path, _ in _walk(config)}
    missing = [name for name, key in known_keys(algorithm).items() if key.required and name not in present]
    if missing:
        raise ConfigError(f"an incomplete {algorithm} config of NeMo-RL v0.6; missing: {', '.join(missing)}")


def _walk(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        yield f"{path}{key}", value
        if isinstance(value, Mapping):
            yield from _walk(value, f"{path}{key}.")


def _faults(config: Mapping[str, Any], algorithm: str, exported: bool, path: str = "") -> Iterator[str]:
    table = known_keys(algorithm)
    for name, value in config.items():
        dotted = f"{path}{name}"
        key = table.get(dotted)
        if key is None:
            yield f"{dotted}: unknown key{nearest(dotted, table)}"
        elif exported and not key.everywhere:
            yield f"{dotted}: not a key of every version from v0.6.0 on"
        elif not _fits(value, key.types):
            yield f"{dotted}: expected {' or '.join(key.types)}, got {value!r}"
        elif isinstance(value, Mapping) and any(other.startswith(f"{dotted}.") for other in table):
            yield from _faults(value, algorithm, exported, f"{dotted}.")


def _fits(value: Any, types: tuple[str, ...]) -> bool:
    if isinstance(value, str) and value.startswith("${"):
        return True
    kind = "null" if value is None else "dict" if isinstance(value, Mapping) else type(value).__name__
    fitting = {"any", kind, f'"{value}"'} | ({"float"} if kind == "int" else set())
    return not fitting.isdisjoint(types)
