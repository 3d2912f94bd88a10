"""The model card of a merge: what went in, how it was mixed, what it scored, and its licences."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nanoalign.common.intervals import Estimate
from nanoalign.merge.checkpoint import TensorSource

LICENCE_KEYS = ("license", "license_name", "license_link")


def write_card(
    folder: Path,
    inputs: Mapping[str, TensorSource],
    method: str,
    parameters: Mapping[str, Any],
    scores: Mapping[str, Estimate] | None = None,
) -> None:
    """Writes ``README.md`` into a merge's folder and copies the other inputs' licence files.

    ``inputs`` by what the card calls them (A, B, base); ``parameters`` as alpha or density; ``scores`` by suite. The
    licence fields of the inputs' own cards are carried over; where they differ, the card says so and declares none.
    """
    fields = {label: _licence_fields(source.folder) for label, source in inputs.items()}
    name = ", ".join(f"{key} {_figure(value)}" for key, value in parameters.items())
    front: dict[str, Any] = {
        "library_name": "transformers",
        "tags": ["merge", f"merge-{method}"],
        "base_model": [source.folder.name for source in inputs.values()],
        "base_model_relation": "merge",
        **_common_licence(list(fields.values())),
    }
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        f"# Merge: {method}, {name}" if name else f"# Merge: {method}",
        "",
        "## Inputs",
        "| | folder | fingerprint | licence |",
        "|---|---|---|---|",
        *(
            f"| {label} | `{source.folder}` | `{source.fingerprint()}` | {_licence_text(fields[label])} |"
            for label, source in inputs.items()
        ),
    ]
    if any(field != next(iter(fields.values())) for field in fields.values()):
        lines += ["", "The inputs' licences differ: all of them apply to anyone who redistributes this model."]
    if method == "linear":
        lines += ["", "Weights are (1 - alpha) * A + alpha * B, computed in fp32 or wider and rounded once."]
    if scores:
        lines += ["", "## Scores", "| suite | value | 95% interval | n |", "|---|---|---|---|"]
        lines += [
            f"| {suite} | {score.value:.4f} | {score.low:.4f} to {score.high:.4f} | {score.n} |"
            for suite, score in scores.items()
        ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _carry_licence_files(folder, inputs)


def _licence_fields(folder: Path) -> dict[str, Any]:
    """The licence fields of a card's YAML front matter; empty where there is no card or no such field."""
    card = folder / "README.md"
    if not card.exists():
        return {}
    _, mark, rest = card.read_text(encoding="utf-8").partition("---\n")
    front, closing, _ = rest.partition("\n---")
    if not mark or not closing:
        return {}
    try:
        fields = yaml.safe_load(front)
    except yaml.YAMLError:
        return {}
    return {key: fields[key] for key in LICENCE_KEYS if key in fields} if isinstance(fields, dict) else {}


def _common_licence(fields: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return fields[0] if all(field == fields[0] for field in fields) else {}


def _licence_text(fields: dict[str, Any]) -> str:
    names = [str(fields[key]) for key in ("license", "license_name") if key in fields]
    text = ", ".join(names) or "not stated"
    return f"[{text}]({fields['license_link']})" if "license_link" in fields else text


def _carry_licence_files(folder: Path, inputs: Mapping[str, TensorSource]) -> None:
    for label, source in inputs.items():
        for name, path in source.extras.items():
            if name.upper().startswith(("LICENSE", "LICENCE", "NOTICE", "COPYING")):
                target = folder / name
                if target.exists() and target.read_bytes() != path.read_bytes():
                    target = folder / f"{path.stem}-{label}{path.suffix}"
                shutil.copyfile(path, target)


def _figure(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
