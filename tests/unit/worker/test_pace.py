"""Looking ahead: far for short tasks, not at all for long ones."""

import doctest

from adjourn.worker import pace


def test_examples():
    assert doctest.testmod(pace).failed == 0


def test_the_pace_follows_long_tasks_fast():
    watched = pace.Pace()
    for _ in range(10):
        watched.observe(64, 64 * 0.00002)
    assert pace.child_capacity(watched.seconds) == 128
    watched.observe(1, 1.0)
    assert pace.child_capacity(watched.seconds) == 1


def test_the_pace_comes_back_to_short_tasks():
    watched = pace.Pace()
    watched.observe(1, 30.0)
    for _ in range(200):
        watched.observe(1, 0.0001)
    assert watched.seconds < 0.001


def test_tasks_of_no_measurable_length_do_not_divide_by_zero():
    watched = pace.Pace()
    for _ in range(100):
        watched.observe(64, 0.0)
    assert pace.child_capacity(watched.seconds) == 128
    assert pace.supply(watched.seconds, 2, 1024) == 1024


def test_nothing_is_asked_for_without_children():
    assert pace.supply(0.001, 0, 1024) == 0


def test_prefetch_is_the_bound_of_the_supply():
    assert pace.supply(1.0, 8, 1) == 1
