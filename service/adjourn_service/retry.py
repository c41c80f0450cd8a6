"""When a failed task is tried again: App Engine's arithmetic, pure."""

from adjourn_service.model import RetryPolicy, StopRule

_MAX_EXPONENT = 1000
"""2.0 ** 1000 is still a float; every policy has reached its max_backoff long before."""


def backoff_us(failures: int, policy: RetryPolicy, random: float = 0.0) -> int:
    """Return the wait in microseconds after the attempt that made it `failures` (from 1) failed ones.

    `random`, from 0 up to 1, is the draw that jitter uses: the wait is shortened by `jitter * random` of itself.

    >>> policy = RetryPolicy(min_backoff_us=10, max_backoff_us=300, max_doublings=3)
    >>> [backoff_us(n, policy) for n in range(1, 9)]
    [10, 20, 40, 80, 160, 240, 300, 300]

    Raises: ValueError if failures < 1.
    Source: App Engine taskqueue_stub.py, TaskQueueRetry back-off; google/cloud/tasks/v2/queue.proto, max_doublings."""
    if failures < 1:
        raise ValueError(f"failures must be at least 1, not {failures}")
    exponent = min(failures - 1, policy.max_doublings, _MAX_EXPONENT)
    linear_steps = max(1, failures - min(failures - 1, policy.max_doublings))
    wait = min(float(policy.max_backoff_us), policy.min_backoff_us * 2.0**exponent * linear_steps)
    return round(wait * (1.0 - policy.jitter * random))


def gives_up(policy: RetryPolicy, attempts: int, age_us: int) -> bool:
    """Say whether a task that has failed is not tried again.

    `attempts` counts the failed one; `age_us` is the time since the first attempt began. With both limits set,
    `StopRule.ANY` stops at whichever comes first and `StopRule.ALL`, App Engine's rule, only when both are spent."""
    spent = []
    if policy.max_attempts:
        spent.append(attempts >= policy.max_attempts)
    if policy.max_age_us:
        spent.append(age_us > policy.max_age_us)
    if not spent:
        return False
    return all(spent) if policy.stop is StopRule.ALL else any(spent)
