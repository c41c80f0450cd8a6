"""The states of a task and the moves between them, all thirty-six."""

import pytest

from adjourn_service.lifecycle import ENDED, may_become
from adjourn_service.model import TaskState

S = TaskState

MOVES = {
    (S.SCHEDULED, S.READY),
    (S.READY, S.LEASED),
    (S.LEASED, S.READY),
    (S.LEASED, S.SCHEDULED),
    (S.LEASED, S.SUCCEEDED),
    (S.LEASED, S.DEAD),
    (S.SCHEDULED, S.CANCELLED),
    (S.READY, S.CANCELLED),
    (S.LEASED, S.CANCELLED),
    (S.DEAD, S.READY),
    (S.CANCELLED, S.READY),
}


@pytest.mark.parametrize("state", list(TaskState), ids=lambda state: state.name)
@pytest.mark.parametrize("to", list(TaskState), ids=lambda state: state.name)
def test_only_the_moves_of_the_design_are_allowed(state: TaskState, to: TaskState):
    assert may_become(state, to) is ((state, to) in MOVES)


def test_a_success_is_final():
    assert not any(may_become(S.SUCCEEDED, to) for to in TaskState)


def test_what_has_ended_can_only_be_made_ready_by_hand():
    assert {to for state in ENDED for to in TaskState if may_become(state, to)} == {S.READY}
