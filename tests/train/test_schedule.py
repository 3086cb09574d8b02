from __future__ import annotations

import pytest

from headgate.train import ScheduleConfig
from headgate.train.schedule import interpolate, learning_rate


def test_steps_divide_at_the_papers_milestones() -> None:
    config = ScheduleConfig(kind="steps", milestones=(200, 250))
    rates = [learning_rate(config, 0.1, epoch, 300) for epoch in (0, 199.9, 200, 249.9, 250, 299)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_cosine_warms_up_from_zero_and_ends_at_zero() -> None:
    config = ScheduleConfig(kind="cosine", warmup_epochs=2)
    assert learning_rate(config, 0.4, 0, 10) == 0
    assert learning_rate(config, 0.4, 1, 10) == pytest.approx(0.2)
    assert learning_rate(config, 0.4, 2, 10) == pytest.approx(0.4)
    assert learning_rate(config, 0.4, 6, 10) == pytest.approx(0.2)
    assert learning_rate(config, 0.4, 10, 10) == pytest.approx(0, abs=1e-12)


def test_interpolate_clamps_and_none_means_constant() -> None:
    assert interpolate(2.0, None, 0.7) == 2.0
    assert [interpolate(2.0, 4.0, p) for p in (-1, 0, 0.5, 1, 2)] == [2, 2, 3, 4, 4]
