"""The report of a run: ``report.json`` for machines, ``report.html`` for people, self-contained both."""

from pathlib import Path


def write_report(folder: Path) -> None:
    """Writes both into a run's folder, from what its stages left there."""
    from nanoalign.artifacts import finite
    from nanoalign.common.files import atomic_file, write_json
    from nanoalign.report.figures import figures_of
    from nanoalign.report.page import page
    from nanoalign.report.read import read_run

    run = read_run(folder)
    figures = figures_of(run)
    stages = {name: stage.record.figures for name, stage in run.stages.items()}
    write_json(folder / "report.json", finite({"run": run.recipe.name, "figures": figures, "stages": stages}))
    with atomic_file(folder / "report.html") as temporary:
        temporary.write_text(page(run, figures), encoding="utf-8")


def note_rerun(folder: Path, seconds: float) -> None:
    """Adds to ``report.json`` the time of a run that had nothing to do (``rerun.wall_s``)."""
    import json

    from nanoalign.common.files import write_json

    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    report["figures"]["rerun.wall_s"] = seconds
    write_json(folder / "report.json", report)


def write_pictures(folder: Path, to: Path) -> list[Path]:
    """Writes the report's plots as PNG files, for README.md and docs."""
    from nanoalign.report import plots
    from nanoalign.report.read import read_run
    from nanoalign.report.sections import sections

    written = []
    for section in sections(read_run(folder)):
        for plot in section.plots:
            plots.png(plot.figure, to / f"{plot.name}.png")
            written.append(to / f"{plot.name}.png")
    return written
