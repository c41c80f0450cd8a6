"""The token bucket of a queue, as a pure value."""

from math import ceil
from typing import NamedTuple

from adjourn_service.model import SECOND_US, RateLimits


class TokenBucket(NamedTuple):
    """How many tokens there were at a moment."""

    tokens: float
    at: int


def burst(limits: RateLimits) -> float:
    """Return the size of the bucket: as set, else one second's worth, but room for one token at least."""
    if limits.max_burst_size is not None:
        return float(limits.max_burst_size)
    return max(1.0, limits.max_leases_per_second or 1.0)


def refill(bucket: TokenBucket | None, limits: RateLimits, now: int) -> TokenBucket:
    """Return the bucket at `now`. None stands for a full one. A clock that went back adds nothing now, and
    that span once more when it comes again: better than a queue that starves until then."""
    size = burst(limits)
    if bucket is None or limits.max_leases_per_second is None:
        return TokenBucket(size, now)
    earned = max(0, now - bucket.at) * limits.max_leases_per_second / SECOND_US
    return TokenBucket(min(size, bucket.tokens + earned), now)


def next_token_at(bucket: TokenBucket, limits: RateLimits) -> int:
    """Return the moment at which the bucket holds a whole token, which may be its own."""
    if bucket.tokens >= 1 or limits.max_leases_per_second is None:
        return bucket.at
    return bucket.at + ceil((1 - bucket.tokens) * SECOND_US / limits.max_leases_per_second)
