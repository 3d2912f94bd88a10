"""What the report shows of each kind of stage: plots and tables, from a run's data."""

from collections.abc import Iterator, Mapping, Sequence

from nanoalign.report import benchmarks, plots
from nanoalign.report.compression import compressions
from nanoalign.report.parts import Cell, Plot, ReportSection, Table, interval, score_cell
from nanoalign.report.read import RunData, StageData

__all__ = ["Cell", "Plot", "ReportSection", "Table", "sections"]


def sections(run: RunData) -> Iterator[ReportSection]:
    """The report's sections, in reading order; those without data are left out."""
    evaluations = run.of_kind("evaluate")
    for stage in evaluations.values():
        yield from _budgets(run, stage)
        yield ReportSection(
            "Checkpoints",
            "Score on held-out tasks, with thinking and with /no_think, and 95% intervals. The best are tinted.",
            tables=[_checkpoints(stage), *_domains(stage), *benchmarks.tables(stage)],
            plots=benchmarks.curves(stage),
        )
    yield from _merges(run)
    yield from compressions(run)
    yield from _distillation(run)
    yield from _learning(run)
    yield from _step_times(run)
    yield from _answers(run)


def _best(rows: list[list[Cell]], values: Sequence[Sequence[float]]) -> list[list[Cell]]:
    """Tints the best cell of each column; the first cell of a row is its name."""
    tops = [max(column) for column in zip(*values, strict=True)]
    return [
        [row[0], *(Cell(cell.text, cell.small, value == top) for cell, value, top in zip(row[1:], own, tops))]
        for row, own in zip(rows, values)
    ]


def _checkpoints(stage: StageData) -> Table:
    checkpoints = stage.result["checkpoints"]
    suites = list(next(iter(checkpoints.values()))["suites"])
    columns = [(suite, mode) for suite in suites for mode in ("on", "off")]
    rows, values = [], []
    for name, checkpoint in checkpoints.items():
        scores = [checkpoint["suites"][suite][mode]["score"] for suite, mode in columns]
        rows.append([Cell(name), *map(score_cell, scores)])
        values.append([score["value"] for score in scores])
    head = ["checkpoint", *(suite if mode == "on" else f"{suite}, /no_think" for suite, mode in columns)]
    return Table("By suite", head, _best(rows, values))


def _domains(stage: StageData) -> Iterator[Table]:
    checkpoints = stage.result["checkpoints"]
    for suite in next(iter(checkpoints.values()))["suites"]:
        domains = list(next(iter(checkpoints.values()))["suites"][suite]["on"]["by_domain"])
        if len(domains) < 2:
            continue
        scores = {
            name: [each["suites"][suite]["on"]["by_domain"][domain] for domain in domains]
            for name, each in checkpoints.items()
        }
        rows = [
            [Cell(name), *(Cell(f"{100 * score['value']:.1f}", interval(score)) for score in own)]
            for name, own in scores.items()
        ]
        values = [[score["value"] for score in own] for own in scores.values()]
        yield Table(f"{suite}, thinking, by domain", ["checkpoint", *domains], _best(rows, values))


MEASURES = {
    "score": ("Accuracy", 100.0, "accuracy, %"),
    "well_formed": ("Well-formed completions", 100.0, "share, %"),
    "compensation": ("Compensation: answer length, cut over free", 1.0, "ratio"),
    "thinking_tokens": ("Thinking", 1.0, "tokens"),
}


def _budgets(run: RunData, stage: StageData) -> Iterator[ReportSection]:
    checkpoints = stage.result["checkpoints"]
    curves = {name: each["budget_curve"]["points"] for name, each in checkpoints.items() if each.get("budget_curve")}
    taught = [name for name, config in run.recipe.stages.items() if config.kind == "sft" and config.truncate_reasoning]
    pairs = [(run.recipe.stages[name].from_, name) for name in taught]
    shown = [name for pair in pairs for name in pair if name in curves] or list(curves)[:4]
    shown += [name for name in list(curves)[-1:] if name not in shown]
    if not shown:
        return
    found = {point["budget"] for name in shown for point in curves[name]}
    budgets = sorted(found, key=lambda budget: float("inf") if budget is None else budget)
    ticks = ["∞" if budget is None else str(budget) for budget in budgets]
    pictures = []
    for measure, (title, scale, y) in MEASURES.items():
        series = {
            name: [
                (budgets.index(point["budget"]), *(scale * point[measure][part] for part in ("value", "low", "high")))
                for point in curves[name]
                if measure in point
            ]
            for name in shown
        }
        pictures.append(Plot(title, plots.intervals(series, "thinking budget, tokens", y, ticks), f"budget_{measure}"))
    note = (
        "The same prompts under each thinking budget, enforced by the rule: at the budget thinking closes at the "
        "next line end, or after the grace immediately."
        + (f" {taught[0]} is the stage trained on truncated reasoning." if taught else "")
    )
    yield ReportSection("Thinking budgets", note, plots=pictures)


def _merges(run: RunData) -> Iterator[ReportSection]:
    for name, stage in run.of_kind("merge").items():
        sweep, config = stage.result, run.recipe.stages[name]
        alphas = [point["alpha"] for point in sweep["points"]]
        measured = {
            suite: [point["scores"][suite] for point in sweep["points"]] for suite in sweep["points"][0]["scores"]
        }
        curve = plots.intervals(
            {suite: _against(alphas, _shares(scores)) for suite, scores in measured.items()},
            "alpha, the weight of the chat model",
            "score, %",
            marks={"chosen": sweep["chosen"]},
        )
        axes = sweep["reasoning_suite"], sweep["chat_suite"]
        dots = [
            (f"{one[0]:g}", one, two) for one, two in zip(*(_against(alphas, measured[suite]) for suite in axes))
        ]  # fmt: skip
        trade = plots.front(dots, f"{sweep['chosen']:g}", *axes)
        columns = [_cells(scores) for scores in measured.values()]
        rows = [[Cell(f"{alpha:g}"), *cells] for alpha, *cells in zip(alphas, *columns)]
        values = [[score["value"] for score in scores] for scores in zip(*measured.values())]
        note = (
            f"(1 - alpha) · {config.reasoning} + alpha · {config.chat}, every alpha evaluated without writing weights; "
            f"{sweep['chosen']:g} was chosen ({sweep['choose']}). Bands are 95% intervals. A judge's score is drawn "
            "as a share of its range."
        )
        yield ReportSection(
            "Merge sweep",
            note,
            plots=[Plot("Score against alpha", curve, "merge_curve"), Plot("Trade-off", trade, "merge_front")],
            tables=[Table("By alpha", ["alpha", *measured], _best(rows, values))],
        )


def _judged(scores: Sequence[Mapping[str, float]]) -> bool:
    """Whether these are not shares of samples but a judge's scores on their own scale."""
    return not all(0 <= score["value"] <= 1 for score in scores)


def _shares(scores: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """In percent; a judge's scores as shares of their range."""
    values = [score["value"] for score in scores]
    floor, top = (min(values), max(values)) if _judged(scores) else (0.0, 1.0)
    return [
        {part: 100 * (score[part] - floor) / ((top - floor) or 1.0) for part in ("value", "low", "high")}
        for score in scores
    ]


def _against(xs: Sequence[float], scores: Sequence[Mapping[str, float]]) -> list[plots.Point]:
    return [(x, score["value"], score["low"], score["high"]) for x, score in zip(xs, scores)]


def _cells(scores: Sequence[Mapping[str, float]]) -> list[Cell]:
    if _judged(scores):
        return [Cell(f"{s['value']:.2f}", f"{s['low']:.2f} to {s['high']:.2f}, n {s['n']:.0f}") for s in scores]
    return [Cell(f"{100 * score['value']:.1f}", interval(score)) for score in scores]


def _distillation(run: RunData) -> Iterator[ReportSection]:
    """How near each student came to its teacher, while it learned and in the end."""
    pictures, rows = [], []
    for name, stage in run.begun.items():
        if stage.record.kind != "distill":
            continue
        series: dict[str, list[tuple[float, float]]] = {}
        done, phase, last = 0, None, 0
        for row in stage.metrics:  # steps begin anew with each phase
            if row.get("phase") != phase:
                done, phase = done + last, row.get("phase")
            last = row["step"]
            for key, label in (("kl", "training"), ("held_out_kl", "held out")):
                if isinstance(row.get(key), int | float):
                    series.setdefault(label, []).append((done + last, row[key]))
        if series:
            figure = plots.lines(series, "step", "KL(teacher || student), nats per token")
            pictures.append(Plot(f"{name}: KL", figure, f"{name}_kl"))
    for name, stage in run.of_kind("distill").items():
        found = stage.record.figures
        numbers = [found.get(key) for key in DISTILLED]
        teacher = run.recipe.stages[name].teacher
        cells = ["" if number is None else f"{number:.3f}" for number in numbers]
        closed = found.get("gap_closed")
        rows.append([Cell(name), Cell(teacher), *map(Cell, cells), Cell("" if closed is None else f"{closed:.1%}")])
    note = (
        "Held-out documents, the tokens that SFT would train on, each alone. KL at temperature 1 over the whole "
        "vocabulary, whatever the stage learns by; loss is the documents' own. The gap is the student's excess of loss "
        "over the teacher's."
    )
    if pictures or rows:
        tables = [Table("By stage", ["stage", "teacher", *DISTILLED.values(), "gap closed"], rows)] if rows else []
        yield ReportSection("Distillation", note, plots=pictures, tables=tables)


DISTILLED = {
    "held_out_kl_first": "KL before", "held_out_kl_last": "after", "held_out_loss_first": "loss before",
    "held_out_loss_last": "after", "teacher_held_out_loss": "teacher's",
}  # fmt: skip
CURVES = {
    "pretrain": ("loss", "loss, nats per token"),
    "sft": ("loss", "loss, nats per token"),
    "reward_model": ("loss", "loss, nats per pair"),
    "grpo": ("reward", "mean reward"),
}


def _learning(run: RunData) -> Iterator[ReportSection]:
    pictures = []
    for name, stage in run.begun.items():
        kind = stage.record.kind
        if kind in CURVES:
            key, y = CURVES[kind]
            points = [(row["step"], row[key]) for row in stage.metrics if isinstance(row.get(key), int | float)]
            if points:
                pictures.append(Plot(f"{name}: {key}", plots.lines({name: points}, "step", y), f"{name}_{key}"))
        elif kind == "dpo" and name in run.stages:
            rounds = [
                stage.record.figures[f"success_round_{n}"]
                for n in range(100)
                if f"success_round_{n}" in stage.record.figures
            ]
            success = [(n, 100 * r["value"], 100 * r["low"], 100 * r["high"]) for n, r in enumerate(rounds)]
            figure = plots.intervals(
                {"held-out tasks": success}, "round", "success, %", [str(n) for n in range(len(rounds))]
            )
            pictures.append(Plot(f"{name}: success by round", figure, f"{name}_success"))
    if pictures:
        yield ReportSection("Learning", "Thin: every step. Thick: a running mean.", plots=pictures)


TIMES = {
    "step_s": "step", "sync_s": "weights", "rollout_s": "rollouts", "reward_s": "rewards", "train_s": "training",
    "trainer_idle_share": "trainer idle", "engine_idle_share": "engines idle", "staleness/mean": "age of weights",
}  # fmt: skip
"""Figures of a GRPO stage (rl.grpo.PARTS) and the heads of their columns."""


def _step_times(run: RunData) -> Iterator[ReportSection]:
    """Where a GRPO step's time goes."""
    stages = {name: stage.record.figures for name, stage in run.of_kind("grpo").items()}
    names = [name for name in TIMES if any(name in figures for figures in stages.values())]

    def cell(figures: Mapping[str, float], name: str) -> Cell:
        if name not in figures:
            return Cell("")
        value = figures[name]
        return Cell(f"{value:.0%}" if name.endswith("share") else f"{value:.2f}{' s' if name.endswith('_s') else ''}")

    if "train_s" in names:
        rows = [[Cell(name), *(cell(figures, each) for each in names)] for name, figures in stages.items()]
        note = (
            "Means over the steps. Idle shares are of engines beside the trainer: how long it waited for weights to "
            "leave, completions and rewards, and how long they had nothing to generate or were getting weights."
        )
        head = ["stage", *(TIMES[name] for name in names)]
        yield ReportSection("A GRPO step's time", note, tables=[Table("By stage", head, rows)])


def _answers(run: RunData) -> Iterator[ReportSection]:
    rows = []
    for name, stage in run.stages.items():
        seen = stage.record.figures.get("answers") or {"of": 0, "reasons": {}}
        for reason, count in seen["reasons"].items():
            rows.append([Cell(name), Cell(reason), Cell(f"{count:,} of {seen['of']:,}", f"{count / seen['of']:.1%}")])
    if rows:
        note = (
            "Faulty completions, and those that a reward did not judge on their merits, by reason. All "
            "were scored: a special token earns nothing from any reward, the rest is judged as it is."
        )
        yield ReportSection("Faulty answers", note, tables=[Table("By stage", ["stage", "what", "completions"], rows)])
