"""The accounts of a dead child."""

import pytest

from adjourn.worker.child_process import Remains, settle_accounts
from adjourn.worker.progress import Progress

GIVEN = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("ended", "progress", "succeeded", "running", "unstarted"),
    [
        pytest.param(0, (0, 0), [], None, GIVEN, id="died before its first task"),
        pytest.param(0, (1, 0), [], "a", ["b", "c", "d"], id="died in its first task"),
        pytest.param(0, (3, 2), ["a", "b"], "c", ["d"], id="two successes were not reported yet"),
        pytest.param(0, (2, 2), ["a", "b"], None, ["c", "d"], id="died between tasks"),
        pytest.param(7, (9, 8), ["a"], "b", ["c", "d"], id="seven were reported before"),
        pytest.param(8, (8, 7), [], None, GIVEN, id="the last report was sent, the page not written"),
        pytest.param(0, (4, 4), GIVEN, None, [], id="died with everything done"),
    ],
)
def test_each_task_is_in_one_account(ended, progress, succeeded, running, unstarted):
    assert settle_accounts(GIVEN, ended, Progress(*progress)) == (succeeded, running, unstarted)


@pytest.mark.parametrize(
    ("status", "cause"), [(-9, "SIGKILL"), (-11, "SIGSEGV"), (3, "exit status 3"), (-63, "signal 63")]
)
def test_the_cause_of_death_has_a_name(status, cause):
    assert Remains(status, None, [], None, []).cause == cause
