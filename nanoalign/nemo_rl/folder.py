"""An export as a folder: config, data, plug-in, launch command, and a README that says what became of every setting."""

import json
import shutil
from pathlib import Path

import yaml

from nanoalign.common.files import atomic_folder
from nanoalign.nemo_rl.schema import EXAMPLES, check_config
from nanoalign.nemo_rl.settings import PLUGIN, Export, Target

_HERE = Path(__file__).parent

LAUNCH = """#!/bin/bash
# {stage} with NeMo-RL v0.6 on {nodes} x {gpus} GPUs. Run it on the login node; the container must see all paths.
set -euo pipefail
: "${{NEMO_RL_ROOT:?a checkout of NVIDIA-NeMo/RL v0.6, also the path within the container}}"
: "${{NANOALIGN_ROOT:={root}}}"
: "${{CONTAINER:?the container image of NeMo-RL}}"
: "${{MOUNTS:=$NEMO_RL_ROOT:$NEMO_RL_ROOT,$NANOALIGN_ROOT:$NANOALIGN_ROOT,{folder}:{folder}{model_mount}}}"
export CONTAINER MOUNTS GPUS_PER_NODE={gpus}
export COMMAND="cd $NEMO_RL_ROOT && NEMO_RL_ROOT=$NEMO_RL_ROOT PYTHONPATH=$NANOALIGN_ROOT:{folder} \\
  uv run python {folder}/start.py {algorithm} --config {folder}/config.yaml $*"
cd "$NEMO_RL_ROOT"
sbatch --nodes={nodes} --gres=gpu:{gpus} --job-name={stage}{options} ray.sub
"""

README = """# Stage `{stage}` for NeMo-RL v0.6

    NEMO_RL_ROOT=... CONTAINER=... bash launch.sh            # further `key=value` arguments override the config

| file | what it is |
|---|---|
| `config.yaml` | NeMo-RL's `examples/configs/{example}` and what differs from it |
| `data.jsonl` | {rows} rows of token ids, rendered, masked and tokenized by nanoalign |
| `{plugin}.py` | dataset, processors, reward environment; for DPO its processor of pairs replaces NeMo-RL's |
| `start.py` | checks every key of `config.yaml`, registers the plug-in, runs NeMo-RL's `run_{algorithm}.py` |
| `launch.sh` | `sbatch ray.sub` |

The model comes from `{model}` and must be there when the job starts. The new weights go to
`checkpoints/step_N/policy/weights`, with a copy consolidated in Hugging Face's layout.

NeMo-RL's own environment (Python 3.13) runs this: it needs nanoalign's light packages (pydantic, PyYAML, jinja2,
math-verify; reasoning-gym for tasks of that kind). Keys are checked against v0.6.0, v0.7.0 and main of 2026-08-22, and
the plug-in's data path was run on the sources of v0.6.0; no export has been run on a cluster yet.

## What became of the recipe's settings

| recipe | here |
|---|---|
{notes}
"""


def write_export(export: Export, target: Target, out: Path, slurm: dict[str, str | None]) -> None:
    """Writes the folder atomically. ``slurm`` are further options of sbatch.

    Raises:
        ConfigError: the config is not valid for NeMo-RL; every wrong key is named.
    """
    config = {"defaults": f"${{oc.env:NEMO_RL_ROOT}}/examples/configs/{EXAMPLES[export.algorithm]}", **export.config}
    check_config(config, export.algorithm, exported=True)
    folder = target.folder
    options = "".join(f" --{name}={value}" for name, value in slurm.items() if value is not None)
    with atomic_folder(out) as new:
        (new / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, width=120), encoding="utf-8")
        with (new / "data.jsonl").open("w", encoding="utf-8") as file:
            rows = 0
            for row in export.rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                rows += 1
        shutil.copyfile(_HERE / "plugin.py", new / f"{PLUGIN}.py")
        shutil.copyfile(_HERE / "start.py", new / "start.py")
        launch = LAUNCH.format(
            stage=target.stage, nodes=target.nodes, gpus=target.gpus_per_node, root=_HERE.parents[1], folder=folder,
            algorithm=export.algorithm, options=options,
            model_mount=f",{target.model}:{target.model}" if target.model.startswith("/") else "",
        )  # fmt: skip
        (new / "launch.sh").write_text(launch, encoding="utf-8")
        notes = "\n".join(f"| `{key}` | {note} |" for key, note in export.notes)
        readme = README.format(
            stage=target.stage, example=EXAMPLES[export.algorithm], rows=rows, plugin=PLUGIN,
            algorithm=export.algorithm, model=target.model, notes=notes,
        )  # fmt: skip
        (new / "README.md").write_text(readme, encoding="utf-8")
