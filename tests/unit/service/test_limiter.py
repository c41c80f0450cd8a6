"""The token bucket: its examples and its laws."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from adjourn_service.limiter import TokenBucket, burst, next_token_at, refill
from adjourn_service.model import SECOND_US, RateLimits

START = 1_700_000_000_000_000


@pytest.mark.parametrize(
    ("limits", "size"),
    [
        (RateLimits(max_leases_per_second=10), 10),
        (RateLimits(max_leases_per_second=0.1), 1),
        (RateLimits(max_leases_per_second=10, max_burst_size=3), 3),
        (RateLimits(max_leases_per_second=2.5), 2.5),
        (RateLimits(), 1),
    ],
)
def test_the_size_is_as_set_or_else_a_seconds_worth(limits: RateLimits, size: float):
    assert burst(limits) == size


def test_a_new_bucket_is_full():
    limits = RateLimits(max_leases_per_second=5, max_burst_size=7)
    assert refill(None, limits, START) == TokenBucket(7, START)


def test_a_bucket_fills_at_its_rate_up_to_its_size():
    limits = RateLimits(max_leases_per_second=2, max_burst_size=4)
    bucket = TokenBucket(1, START)
    assert refill(bucket, limits, START + SECOND_US) == TokenBucket(3, START + SECOND_US)
    assert refill(bucket, limits, START + SECOND_US * 60).tokens == 4


def test_a_smaller_burst_holds_at_once():
    assert refill(TokenBucket(9, START), RateLimits(max_leases_per_second=1, max_burst_size=2), START).tokens == 2


def test_a_clock_that_goes_back_adds_nothing():
    limits = RateLimits(max_leases_per_second=2, max_burst_size=4)
    assert refill(TokenBucket(1, START), limits, START - SECOND_US).tokens == 1


def test_the_next_token_comes_when_its_missing_part_is_earned():
    limits = RateLimits(max_leases_per_second=4)
    assert next_token_at(TokenBucket(0.5, START), limits) == START + SECOND_US // 8
    assert next_token_at(TokenBucket(1, START), limits) == START
    assert next_token_at(TokenBucket(0, START), RateLimits()) == START


rates = st.builds(
    RateLimits,
    max_leases_per_second=st.floats(1e-3, 1e6),
    max_burst_size=st.none() | st.integers(1, 10_000),
)


@given(rates, st.floats(0, 1, exclude_max=True))
def test_at_the_next_tokens_moment_there_is_one_and_not_long_before(limits: RateLimits, tokens: float):
    bucket = TokenBucket(tokens, START)
    at = next_token_at(bucket, limits)
    # The rounding of the sum may cost the last microsecond; then the next question is answered by one more.
    assert refill(bucket, limits, at + 1).tokens >= 1
    if at - START > 1:
        assert refill(bucket, limits, at - 2).tokens < 1


@given(rates, st.lists(st.integers(0, 10 * SECOND_US), max_size=40))
def test_no_more_is_given_than_the_burst_and_what_the_rate_earns(limits: RateLimits, pauses: list[int]):
    bucket, now, given_out = None, START, 0
    for pause in pauses:
        now += pause
        bucket = refill(bucket, limits, now)
        whole = int(bucket.tokens)
        given_out += whole
        bucket = bucket._replace(tokens=bucket.tokens - whole)
    assert limits.max_leases_per_second is not None
    earned = (now - START) / SECOND_US * limits.max_leases_per_second
    assert given_out <= (burst(limits) + earned) * (1 + 1e-9) + 1e-6


@given(rates, st.integers(1, 10**9), st.integers(1, 10**9))
def test_looking_in_between_changes_nothing(limits: RateLimits, first: int, second: int):
    empty = TokenBucket(0, START)
    once = refill(empty, limits, START + first + second)
    twice = refill(refill(empty, limits, START + first), limits, START + first + second)
    assume(once.tokens < burst(limits))
    assert twice.tokens == pytest.approx(once.tokens)
