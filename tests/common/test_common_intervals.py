"""Intervals hold their value."""

from hypothesis import given
from hypothesis import strategies as st

from nanoalign.common.intervals import proportion


@given(
    st.integers(1, 2000).flatmap(lambda n: st.tuples(st.sampled_from([0, 1, n - 1, n]) | st.integers(0, n), st.just(n)))
)
def test_a_share_lies_in_its_interval(counts: tuple[int, int]) -> None:
    """Rounding put 0 of 6 below its interval, and a report could not draw it."""
    found = proportion(*counts)
    assert 0 <= found.low <= found.value <= found.high <= 1
