"""Which alpha wins: the rules as properties."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.common.errors import ConfigError
from nanoalign.common.intervals import Estimate, proportion
from nanoalign.merge.choose import Choice, Point, best, golden_section, neighbours, on_front, pareto_front, ranking

share = st.integers(0, 20).map(lambda count: count / 20)
pairs = st.lists(st.tuples(share, share), min_size=2, max_size=12)
PARETO, CONSTRAINT = Choice("reasoning", "chat"), Choice("reasoning", "chat", "constraint", max_reasoning_loss=0.01)


def points(values: list[tuple[float, float]]) -> list[Point]:
    """Evenly spaced alphas with these scores of reasoning and chat."""
    last = len(values) - 1
    return [
        Point(place / last, {"reasoning": Estimate(x, x, x, 1), "chat": Estimate(y, y, y, 1)})
        for place, (x, y) in enumerate(values)
    ]


@given(pairs)
def test_the_front_is_what_nothing_beats(values):
    front = pareto_front(values)
    assert front
    for place, (x, y) in enumerate(values):
        beaten = any(u >= x and v >= y and (u, v) != (x, y) for u, v in values)
        assert (place in front) == (not beaten)


@given(pairs, st.sampled_from(["pareto", "weighted", "constraint"]), share)
def test_the_best_point_is_on_the_front_under_every_rule(values, method, weight):
    choice = Choice("reasoning", "chat", method, weights=(weight, 1 - weight), max_reasoning_loss=0.1)
    assert on_front(best(points(values), choice), points(values), choice)


@given(pairs, st.sampled_from([0.0, 0.05, 0.3]))
def test_the_constraint_holds_and_chat_is_best_within_it(values, loss):
    choice = Choice("reasoning", "chat", "constraint", max_reasoning_loss=loss)
    chosen = choice.values(best(points(values), choice))
    floor = max(values[0][0], values[-1][0]) - loss - 1e-9
    allowed = [y for x, y in values if x >= floor]
    assert chosen[0] >= floor
    assert chosen[1] == max(allowed)


def test_pareto_takes_the_knee_and_weights_move_the_choice():
    values = [(0.80, 0.20), (0.79, 0.50), (0.60, 0.60), (0.30, 0.70)]
    assert best(points(values), PARETO).alpha == pytest.approx(1 / 3)
    assert best(points(values), Choice("reasoning", "chat", "weighted", (1.0, 0.0))).alpha == 0
    assert best(points(values), Choice("reasoning", "chat", "weighted", (0.0, 1.0))).alpha == 1
    assert best(points(values), CONSTRAINT).alpha == pytest.approx(1 / 3)


def test_a_suite_without_samples_is_an_error():
    empty = [Point(alpha, {"reasoning": proportion(0, 0), "chat": proportion(1, 2)}) for alpha in (0.0, 1.0)]
    with pytest.raises(ConfigError, match="suite reasoning has no figure at alpha 0"):
        best(empty, PARETO)


def test_points_survive_json():
    point = points([(0.1, 0.2), (0.3, 0.4)])[1]
    assert Point.from_dict(point.as_dict()) == point


@given(st.floats(0.2, 0.4), st.integers(1, 12))
def test_golden_section_narrows_a_peak_within_its_evaluations(peak, evaluations):
    calls: list[float] = []

    def key(alpha: float) -> tuple[float, ...]:
        calls.append(alpha)
        return (-abs(alpha - peak),)

    tried = golden_section(key, 0.2, 0.4, evaluations)
    assert calls == tried
    assert len(set(tried)) == len(tried) <= evaluations
    assert all(0.2 < alpha < 0.4 for alpha in tried)
    nearest = min(abs(alpha - peak) for alpha in tried)
    assert nearest <= 0.2 * 0.6181 ** max(1, evaluations - 1) + 2e-4


def test_the_bracket_is_the_neighbours():
    grid = points([(0, 0)] * 5)
    assert neighbours(grid, grid[2]) == (0.25, 0.75)
    assert neighbours(grid, grid[0]) == (0.0, 0.25)


def test_keys_outside_the_scale_still_order():
    key = ranking(points([(0.2, 0.2), (0.4, 0.4)]), PARETO)
    better = points([(0.5, 0.5), (0.6, 0.6)])
    assert key(better[1]) > key(better[0]) and not math.isinf(key(better[1])[0])
