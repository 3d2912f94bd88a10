"""``nanoalign export``: a stage for another trainer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanoalign.cli_shared import DataRootOption, RecipeArgument, RootOption, SetOption, load_recipe
from nanoalign.common.printable import known

if TYPE_CHECKING:
    from nanoalign.data_recipes.config import Mixture
    from nanoalign.nemo_rl.settings import Export, Target
    from nanoalign.recipe.schema import Recipe
    from nanoalign.sft.config import SFTStage

app = typer.Typer(no_args_is_help=True, help="Export a stage for another trainer.")


@app.callback()
def _group() -> None:
    """Keeps `export nemo-rl` a command of a group, though it is the only one."""


@app.command("nemo-rl")
def nemo_rl(
    recipe: RecipeArgument,
    stage: Annotated[str, typer.Option(help="An sft, dpo or grpo stage.")],
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Output folder (default: RUNS/NAME/STAGE-nemo-rl).")
    ] = None,
    set_: SetOption = None,
    data_root: DataRootOption = None,
    root: RootOption = Path("runs"),
) -> None:
    """Export a stage for NeMo-RL v0.6: config, data, rewards and launch command.

    Settings that NeMo-RL does not have are errors, or are listed in the export's README.
    """
    from nanoalign.nemo_rl.folder import write_export

    loaded = load_recipe(recipe, set_, None, data_root)
    known("stage", stage, loaded.stages)
    folder = out or root / loaded.name / f"{stage}-nemo-rl"
    target = _target(loaded, stage, folder, root)
    export = _export(loaded, stage, target, data_root, root)
    launch = loaded.launch
    slurm = {name: getattr(launch, name, None) for name in ("partition", "account", "time")}
    write_export(export, target, folder, slurm)
    print(folder)


def _target(recipe: "Recipe", name: str, folder: Path, root: Path) -> "Target":
    from nanoalign.common.errors import ConfigError
    from nanoalign.graph import stage_seed
    from nanoalign.models.loading import describe_model, local_folder
    from nanoalign.nemo_rl.settings import Target
    from nanoalign.recipe.schema import SlurmLaunch

    section: Any = recipe.stages[name]
    if section.kind not in ("sft", "dpo", "grpo"):
        raise ConfigError(f"stages.{name}.kind: {section.kind}: NeMo-RL trains only sft, dpo and grpo")
    local = local_folder(recipe.model)
    model = str(local.resolve() if local is not None else recipe.model)
    if section.from_ != "base":
        model = str((root / recipe.name / section.from_ / "model").resolve())
    launch = recipe.launch
    nodes = launch.nodes if isinstance(launch, SlurmLaunch) else 1
    hybrid = describe_model(recipe.model)["blocks"].get("mamba", 0) > 0
    return Target(name, model, hybrid, nodes, launch.devices // nodes, stage_seed(recipe, name), folder.resolve())


def _export(recipe: "Recipe", name: str, target: "Target", data_root: Path | None, root: Path) -> "Export":
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.data_recipes.selection import build
    from nanoalign.models.loading import load_tokenizer
    from nanoalign.nemo_rl.policy import export_grpo
    from nanoalign.nemo_rl.preference import export_dpo
    from nanoalign.rl.collect import prompts_of

    section: Any = recipe.stages[name]
    if section.kind == "dpo":
        found = (root / recipe.name / name).glob("round-*/pairs.jsonl")
        rounds = sorted(found, key=lambda path: int(path.parent.name.removeprefix("round-")))
        pairs = rounds[-1] if rounds else root / recipe.name / name / "round-1" / "pairs.jsonl"
        return export_dpo(target, section, pairs)
    chat, tokenizer = chat_format(recipe.chat), load_tokenizer(recipe.model)
    if section.kind == "sft":
        folder = root / recipe.name / name
        return _sft(section, recipe.data[section.data], target, chat, tokenizer, folder, data_root)
    if section.kind == "grpo" and section.environment is not None:
        raise target.refuse("environment", "NeMo-RL is given prompts and rewards, not our environments")
    built = build(recipe.data[section.data], data_root, target.seed, chat=chat)
    prompts = prompts_of(built.conversations, section.thinking, chat, tokenizer, target.seed)
    return export_grpo(target, section, prompts, chat, recipe.chat, tokenizer)


def _sft(
    stage: "SFTStage",
    mixture: "Mixture",
    target: "Target",
    chat: Any,
    tokenizer: Any,
    folder: Path,
    data_root: Path | None,
) -> "Export":
    """The documents of :func:`sft.stage.run`, or its packs if they are concatenated without isolation."""
    from nanoalign.data_recipes.tokenize import Example
    from nanoalign.models.packing import singly
    from nanoalign.nemo_rl.supervised import Packing, export_sft
    from nanoalign.sft.data import packed, prepare_stage, sft_data

    prepared = prepare_stage(stage, mixture, chat, tokenizer, folder, data_root, target.seed)
    documents = sft_data(stage, prepared, target.seed).documents
    packing, rows = None, singly(documents.lengths)
    if stage.pack:
        packs = packed(documents.lengths, stage.pack, target.seed)
        if stage.pack.isolate:
            packing = Packing(stage.pack.length, len(packs))
        else:
            rows = packs

    def example(members: Any) -> Example:
        tokens = [documents[int(member)] for member in members]
        flat = [token for ids, _ in tokens for token in ids.tolist()]
        return Example(flat, [int(trained) for _, mask in tokens for trained in mask])

    groups = [rows.samples[a:b] for a, b in zip(rows.starts[:-1], rows.starts[1:], strict=True)]
    lengths = [int(documents.lengths[members].sum()) for members in groups]
    return export_sft(target, stage.train, map(example, groups), len(groups), max(lengths), packing)
