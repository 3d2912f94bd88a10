"""The picture of the stage graph: arrows meet no box but those that they join, and each stage shows how it stands."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoalign.graph import inputs_of, needed_by, order
from nanoalign.recipe.load import load, shipped
from nanoalign.report.stage_graph import BOX, FAILED, Layout, curve, graph, layout

Inputs = dict[str, list[str]]


@st.composite
def graphs(draw: st.DrawFn) -> Inputs:
    """Stages that take the base model or any stages before them."""
    inputs: Inputs = {}
    for number in range(draw(st.integers(1, 9))):
        sources = st.sampled_from(["base", *inputs])
        inputs[draw(st.sampled_from(["s", "a_rather_long_name_"])) + str(number)] = draw(
            st.lists(sources, min_size=1, max_size=4, unique=True)
        )
    return inputs


def points(plan: Layout, source: str, target: str) -> Iterator[tuple[float, float]]:
    """An arrow's way in small steps."""
    x0, y0 = 0.0, 0.0
    for kind, own in curve(plan, plan.routes[source, target]):
        for step in range(101):
            t = step / 100
            if kind == "line":
                yield x0 + t * (own[0][0] - x0), y0 + t * (own[0][1] - y0)
            elif kind == "bend":
                ways = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3]
                xs, ys = zip((x0, y0), *own, strict=True)
                yield sum(map(float.__mul__, ways, xs)), sum(map(float.__mul__, ways, ys))
        x0, y0 = own[-1]


def check(kinds: dict[str, str], inputs: Inputs) -> None:
    plan = layout(kinds, inputs)
    boxes = {name: (*plan.centres[name, column], plan.widths[column]) for name, column in plan.columns.items()}
    for x, y, width in boxes.values():
        assert width / 2 < x < plan.size[0] - width / 2 and BOX / 2 < y < plan.size[1] - BOX / 2
        near = [
            other for other in boxes.values() if abs(other[0] - x) < (width + other[2]) / 2 and abs(other[1] - y) < BOX
        ]
        assert len(near) == 1
    assert set(plan.routes) == {(source, target) for target, sources in inputs.items() for source in sources}
    for source, target in plan.routes:
        assert boxes[source][0] < boxes[target][0]
        for px, py in points(plan, source, target):
            for name, (x, y, width) in boxes.items():
                inside = abs(px - x) < width / 2 - 1e-9 and abs(py - y) < BOX / 2
                assert not inside, f"{source} -> {target} runs through {name}"


@settings(deadline=None)
@given(graphs())
def test_arrows_go_around_boxes(inputs: Inputs) -> None:
    check(dict.fromkeys(inputs, "sft"), inputs)


@pytest.mark.parametrize("name", shipped())
def test_the_shipped_recipes_graphs_are_clear(name: str) -> None:
    recipe = load(name)
    inputs = {stage: list(dict.fromkeys(inputs_of(recipe, stage).values())) for stage in recipe.stages}
    check({stage: section.kind for stage, section in recipe.stages.items()}, inputs)


def test_each_stage_shows_how_it_stands() -> None:
    from matplotlib.colors import to_hex

    kinds = dict.fromkeys(["first", "second", "third", "last"], "sft")
    inputs = {"first": ["base"], "second": ["first"], "third": ["first"], "last": ["second", "third"]}
    axes = graph(kinds, inputs, {"first": "finished", "second": "failed", "third": "stopped"}).axes[0]
    boxes = {patch.get_label(): patch for patch in axes.patches}
    assert [name for name in boxes if "->" in name] == [
        "base -> first", "first -> second", "first -> third", "second -> last", "third -> last",
    ]  # fmt: skip
    assert to_hex(boxes["second"].get_facecolor()) == FAILED
    assert to_hex(boxes["third"].get_facecolor()) == "#ffffff"
    assert [name for name, box in boxes.items() if box.get_alpha() and box.get_alpha() < 1] == ["last"]
    assert {text.get_text() for text in axes.texts} == {
        "base", "first\nsft", "second\nfailed", "third\nstopped", "last\nsft",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_stage_is_in_order_also_one_that_is_called_base(name: str) -> None:
    recipe = load(name)
    assert sorted(order(recipe)) == sorted(recipe.stages)
    assert needed_by(recipe, recipe.stages) == set(recipe.stages)
