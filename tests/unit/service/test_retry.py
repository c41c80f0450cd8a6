"""Back-off and giving up, against App Engine's own figures and by their laws."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn_service import retry
from adjourn_service.model import HOUR_US, SECOND_US, RetryPolicy, StopRule
from adjourn_service.retry import backoff_us, gives_up


def waits(policy: RetryPolicy, count: int) -> list[float]:
    return [backoff_us(failures, policy) / SECOND_US for failures in range(1, count + 1)]


def policy_of(min_seconds: float, max_seconds: float, max_doublings: int) -> RetryPolicy:
    return RetryPolicy(
        min_backoff_us=round(min_seconds * SECOND_US),
        max_backoff_us=round(max_seconds * SECOND_US),
        max_doublings=max_doublings,
    )


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        # The sequences of the App Engine and Cloud Tasks documentation; reference/appengine.md, 2.3.
        (policy_of(10, 300, 3), [10, 20, 40, 80, 160, 240, 300, 300, 300]),
        (policy_of(10, 200, 0), [*range(10, 201, 10), 200, 200]),
        (RetryPolicy(), [*(0.1 * 2**n for n in range(16)), 3600, 3600]),
        (policy_of(1, 1000, 1), [1, 2, 4, 6, 8, 10, 12]),
        (policy_of(5, 5, 16), [5, 5, 5]),
        (policy_of(7, 3, 16), [3, 3, 3]),
        (policy_of(0, 3600, 16), [0, 0, 0]),
    ],
)
def test_the_waits_are_app_engines(policy: RetryPolicy, expected: list[float]):
    assert waits(policy, len(expected)) == pytest.approx(expected)


def test_the_defaults_are_app_engines():
    policy = RetryPolicy()
    assert (policy.min_backoff_us, policy.max_backoff_us, policy.max_doublings) == (SECOND_US // 10, HOUR_US, 16)


def test_the_examples_of_the_docstring_hold():
    assert doctest.testmod(retry).failed == 0


@pytest.mark.parametrize("failures", [0, -1])
def test_a_wait_follows_a_failure(failures: int):
    with pytest.raises(ValueError, match="at least 1"):
        backoff_us(failures, RetryPolicy())


@pytest.mark.parametrize("failures", [10**6, 2**62])
def test_a_task_that_failed_for_ever_waits_the_maximum(failures: int):
    assert backoff_us(failures, RetryPolicy()) == HOUR_US
    assert backoff_us(failures, RetryPolicy(max_doublings=2**31)) == HOUR_US


policies = st.builds(
    RetryPolicy,
    min_backoff_us=st.integers(0, 10**12),
    max_backoff_us=st.integers(0, 10**12),
    max_doublings=st.integers(0, 2000),
    jitter=st.floats(0, 1),
)


@given(policies, st.integers(1, 5000), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_between_nothing_and_the_maximum(policy: RetryPolicy, failures: int, draw: float):
    assert 0 <= backoff_us(failures, policy, draw) <= policy.max_backoff_us


@given(policies, st.integers(1, 5000))
def test_waits_never_become_shorter(policy: RetryPolicy, failures: int):
    assert backoff_us(failures, policy) <= backoff_us(failures + 1, policy)


@given(policies, st.integers(1, 5000), st.floats(0, 1, exclude_max=True))
def test_jitter_shortens_by_its_share_at_most(policy: RetryPolicy, failures: int, draw: float):
    full = backoff_us(failures, policy)
    assert full * (1 - policy.jitter) - 1 <= backoff_us(failures, policy, draw) <= full


@given(st.integers(1, 10**6), st.integers(0, 12), st.integers(1, 40))
def test_the_formula_is_exact_in_whole_microseconds(min_us: int, doublings: int, failures: int):
    policy = RetryPolicy(min_backoff_us=min_us, max_backoff_us=10**15, max_doublings=doublings)
    exponent = min(failures - 1, doublings)
    assert backoff_us(failures, policy) == min_us * 2**exponent * max(1, failures - exponent)


ANY, ALL = StopRule.ANY, StopRule.ALL


@pytest.mark.parametrize(
    ("max_attempts", "max_age_us", "stop", "attempts", "age_us", "expected"),
    [
        # No limit: for ever.
        (0, 0, ANY, 10**9, 10**18, False),
        (0, 0, ALL, 10**9, 10**18, False),
        # Attempts only.
        (3, 0, ANY, 2, 10**18, False),
        (3, 0, ANY, 3, 0, True),
        (3, 0, ANY, 4, 0, True),
        (3, 0, ALL, 2, 10**18, False),
        (3, 0, ALL, 3, 0, True),
        (1, 0, ANY, 1, 0, True),
        # Age only: an age of just the limit is not over it.
        (0, 100, ANY, 10**9, 100, False),
        (0, 100, ANY, 1, 101, True),
        (0, 100, ALL, 1, 100, False),
        (0, 100, ALL, 1, 101, True),
        # Both.
        (3, 100, ANY, 2, 100, False),
        (3, 100, ANY, 3, 0, True),
        (3, 100, ANY, 1, 101, True),
        (3, 100, ANY, 3, 101, True),
        (3, 100, ALL, 3, 100, False),
        (3, 100, ALL, 2, 101, False),
        (3, 100, ALL, 3, 101, True),
    ],
)
def test_when_a_task_is_given_up(max_attempts, max_age_us, stop, attempts, age_us, expected: bool):
    policy = RetryPolicy(max_attempts=max_attempts, max_age_us=max_age_us, stop=stop)
    assert gives_up(policy, attempts, age_us) is expected


@given(
    st.builds(
        RetryPolicy,
        max_attempts=st.integers(0, 5),
        max_age_us=st.integers(0, 5),
        stop=st.sampled_from(StopRule),
    ),
    st.integers(1, 7),
    st.integers(0, 7),
)
def test_a_task_that_was_given_up_stays_so(policy: RetryPolicy, attempts: int, age_us: int):
    if gives_up(policy, attempts, age_us):
        assert gives_up(policy, attempts + 1, age_us)
        assert gives_up(policy, attempts, age_us + 1)
