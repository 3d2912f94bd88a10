"""Starts NeMo-RL on an export: ``python start.py ALGORITHM --config config.yaml [key=value ...]``.

Runs where NeMo-RL is (NEMO_RL_ROOT), with nanoalign on PYTHONPATH. Checks every key first, which NeMo-RL does not.
"""

import os
import runpy
import sys
from pathlib import Path

import nanoalign_nemo_rl
import yaml
from nemo_rl.utils.config import load_config, register_omegaconf_resolvers
from omegaconf import OmegaConf

from nanoalign.nemo_rl.schema import check_config, require

algorithm = sys.argv.pop(1)
config = Path(sys.argv[sys.argv.index("--config") + 1])
check_config(yaml.safe_load(config.read_text(encoding="utf-8")), algorithm)
register_omegaconf_resolvers()
require(OmegaConf.to_container(load_config(config)), algorithm)
nanoalign_nemo_rl.register(algorithm)
script = Path(os.environ["NEMO_RL_ROOT"], "examples", f"run_{algorithm}.py")
sys.argv[0] = str(script)
runpy.run_path(str(script), run_name="__main__")
