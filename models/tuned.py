"""Autotuned configurations of mamba-ssm's Triton kernels, shipped, so that a first step does not search for them.

mamba-ssm tries up to a dozen block shapes for each of its kernels at the first call, minutes in all. What it found on
an H100 for the shapes of Nemotron Nano v2 lies in ``tuned.json``: for each kernel, keys (as Triton's autotuner forms
them: shapes and dtypes) and the configuration chosen. A key that is not there is searched for as ever.
"""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

FILE = Path(__file__).with_name("tuned.json")


def autotuners() -> dict[str, Any]:
    """Every autotuned kernel of mamba-ssm's modules imported so far, by name."""
    from triton.runtime.autotuner import Autotuner

    found: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("mamba_ssm.ops.triton.ssd"):
            found |= {kernel: value for kernel, value in vars(module).items() if isinstance(value, Autotuner)}
    return found


@cache
def load() -> int:
    """Hands the shipped configurations for this kind of GPU to the autotuners. Returns how many."""
    known = json.loads(FILE.read_text()).get(_device(), {}) if FILE.is_file() else {}
    count = 0
    for name, tuner in autotuners().items():
        configs = {str(config): config for config in tuner.configs}
        for key, text in known.get(name, []):
            if text in configs:  # another version of mamba-ssm may offer others
                tuner.cache[tuple(key)] = configs[text]
                count += 1
    return count


def found() -> dict[str, dict[str, list[tuple[list[Any], str]]]]:
    """What the autotuners hold now, in the file's form."""
    return {
        _device(): {
            name: [(list(key), str(config)) for key, config in tuner.cache.items()]
            for name, tuner in sorted(autotuners().items())
            if tuner.cache
        }
    }


def _device() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"
