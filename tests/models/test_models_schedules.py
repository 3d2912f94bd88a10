import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.common.errors import ConfigError
from nanoalign.models.config import Training
from nanoalign.models.schedules import optimizer_steps, schedule_curve

recipes = st.builds(
    Training,
    learning_rate=st.floats(1e-6, 1.0),
    schedule=st.sampled_from(["cosine", "constant", "wsd"]),
    warmup_ratio=st.floats(0, 0.9),
    decay_ratio=st.floats(0.01, 1),
    min_lr_ratio=st.floats(0, 1),
)


@given(recipe=recipes, steps=st.integers(1, 300))
def test_curves_rise_then_never_rise_again_and_stay_in_range(recipe: Training, steps: int) -> None:
    curve = schedule_curve(recipe, steps)
    warmup = round(recipe.warmup_ratio * steps)
    assert len(curve) == steps
    assert all(0 <= rate <= recipe.learning_rate * (1 + 1e-9) for rate in curve) and curve[0] >= 0
    assert all(a < b for a, b in pairwise(curve[:warmup]))
    assert all(a >= b - 1e-12 for a, b in pairwise(curve[warmup:]))
    if recipe.schedule != "constant" and steps - warmup > 1:
        assert curve[-1] == pytest.approx(recipe.learning_rate * recipe.min_lr_ratio, abs=1e-12)


def test_wsd_is_flat_between_warm_up_and_decay() -> None:
    recipe = Training(learning_rate=1.0, schedule="wsd", warmup_ratio=0.2, decay_ratio=0.3, min_lr_ratio=0.1)
    curve = schedule_curve(recipe, 10)
    assert curve == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 0.7, 0.4, 0.1])


def test_cosine_is_half_way_in_the_middle() -> None:
    recipe = Training(learning_rate=2.0, warmup_ratio=0.0, min_lr_ratio=0.0)
    curve = schedule_curve(recipe, 5)
    assert curve == pytest.approx([2, 2 * 0.8535533905932737, 1, 2 * 0.14644660940672624, 0])


def test_steps_come_from_epochs_or_are_given() -> None:
    assert optimizer_steps(Training(learning_rate=1.0, batch_size=8), 17) == 3
    assert optimizer_steps(Training(learning_rate=1.0, batch_size=8, epochs=1.5), 17) == 5
    assert optimizer_steps(Training(learning_rate=1.0, batch_size=8, steps=7), 17) == 7
    with pytest.raises(ConfigError, match="not both"):
        optimizer_steps(Training(learning_rate=1.0, steps=7, epochs=1.0), 17)
    with pytest.raises(ConfigError, match="no sample"):
        optimizer_steps(Training(learning_rate=1.0), 0)


def test_the_plan_draws_curves_without_torch() -> None:
    code = "import sys, models.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
