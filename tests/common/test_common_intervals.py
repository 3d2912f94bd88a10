"""Intervals hold their value."""

from hypothesis import given
from hypothesis import strategies as st

from nanoalign.common.intervals import average, mean, proportion


@given(
    st.integers(1, 2000).flatmap(lambda n: st.tuples(st.sampled_from([0, 1, n - 1, n]) | st.integers(0, n), st.just(n)))
)
def test_a_share_lies_in_its_interval(counts: tuple[int, int]) -> None:
    """Rounding put 0 of 6 below its interval, and a report could not draw it."""
    found = proportion(*counts)
    assert 0 <= found.low <= found.value <= found.high <= 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_an_average_of_shares_stays_between_0_and_1(values: list[float]) -> None:
    found = average(values)
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.n == len(values)


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_an_average_of_right_and_wrong_is_their_share(right: list[bool]) -> None:
    found, share = average([float(each) for each in right]), proportion(sum(right), len(right))
    assert all(abs(a - b) < 1e-9 for a, b in zip(found.as_dict().values(), share.as_dict().values()))


def test_other_scores_keep_the_normal_interval() -> None:
    assert average([-1.0, 3.0]) == mean([-1.0, 3.0])
