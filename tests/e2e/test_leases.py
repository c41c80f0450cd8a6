"""Leasing, renewing and settling over the wire: by single calls, and by the stream of the shipped worker."""

import asyncio

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from adjourn.v1 import lease_service_pb2 as pb
from adjourn.v1 import queue_pb2, queue_service_pb2, task_pb2, task_service_pb2

from .conftest import refused, unpack

LONG = Duration(seconds=30)
ANY = pb.QueueSelector(queue="queues/-")
DEFAULT = pb.QueueSelector(queue="queues/default")


async def lease(served, *selectors, most=100, worker_id="w1", **fields):
    request = pb.LeaseRequest(queues=selectors or [DEFAULT], max_leases=most, worker_id=worker_id, **fields)
    return list((await served.leases.Lease(request)).leases)


async def waiting(served, *selectors, **fields):
    """Begin a Lease that waits, and return its call once it is parked."""
    call = asyncio.ensure_future(lease(served, *selectors, wait=LONG, **fields))
    await parked(served)
    return call


async def until(true):
    while not true():  # noqa: ASYNC110 - nothing tells the test what the dispatcher has parked.
        await asyncio.sleep(0)


async def parked(served, number=1):
    await until(lambda: len(served.service._broker.dispatcher._parked) == number)


# --- Lease


async def test_without_wait_nothing_ready_is_answered_at_once(served):
    assert await lease(served) == []


async def test_a_lease_holds_the_task_and_its_terms(served):
    made = await served.create(payload=b"p", callable="m.f", headers={"a": "b"}, retain=Duration(seconds=60))
    (leased,) = await lease(served)
    assert (leased.task.name, leased.task.uid, leased.task.payload) == (made.name, made.uid, b"p")
    assert (leased.task.callable, dict(leased.task.headers)) == ("m.f", {"a": "b"})
    assert not leased.task.HasField("status")
    assert (leased.attempt, leased.duration.seconds, leased.keep_result) == (1, 30, True)
    assert (await served.get(made.name)).status.worker_id == "w1"


async def test_a_named_task_is_leased_by_its_name(served):
    await served.create(task_id="welcome-42")
    assert (await lease(served))[0].task.name == "queues/default/tasks/welcome-42"


async def test_a_lease_lasts_as_long_as_asked(served):
    await served.create()
    (leased,) = await lease(served, lease_duration=Duration(seconds=7, nanos=500_000_000))
    assert leased.duration == Duration(seconds=7, nanos=500_000_000)


async def test_no_more_leases_come_than_asked(served):
    for _ in range(3):
        await served.create()
    assert [len(await lease(served, most=2)) for _ in range(3)] == [2, 1, 0]


async def test_a_create_during_the_wait_is_delivered_at_once(served):
    call = await waiting(served)
    made = await served.create()
    assert [leased.task.uid for leased in await call] == [made.uid]


async def test_a_wait_ends_empty_when_the_time_is_up(served):
    assert await lease(served, wait=Duration(nanos=20_000_000)) == []
    made = await served.create()
    assert await served.state(made.name) == task_pb2.TASK_STATE_READY


async def test_only_tasks_of_the_queues_asked_for_are_leased(served):
    for name in ("a", "b"):
        await served.queues.Create(queue_service_pb2.CreateQueueRequest(queue=queue_pb2.Queue(name=f"queues/{name}")))
        await served.create(name)
    (leased,) = await lease(served, pb.QueueSelector(queue="queues/b"), pb.QueueSelector(queue="queues/unknown"))
    assert leased.task.name.startswith("queues/b/")


async def test_any_queue_means_also_those_made_during_the_wait(served):
    call = await waiting(served, ANY)
    await served.queues.Create(queue_service_pb2.CreateQueueRequest(queue=queue_pb2.Queue(name="queues/late")))
    await served.create("late")
    assert len(await call) == 1


@pytest.mark.parametrize("label", ["tag", "key"])
async def test_a_label_selects_and_waits_for_its_tasks_only(served, label):
    await served.create(**{label: "other"})
    call = await waiting(served, **{label: "mine"})
    await served.create()
    made = await served.create(**{label: "mine"})
    assert [leased.task.uid for leased in await call] == [made.uid]


async def test_tag_and_key_together_are_refused(served):
    refusal = await refused(lease(served, tag="a", key="b"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert refusal.fields.keys() == {"tag", "key"}


async def test_a_client_that_leaves_during_the_wait_takes_no_lease_with_it(served):
    call = await waiting(served)
    call.cancel()
    await parked(served, 0)
    made = await served.create()
    task = await served.get(made.name)
    assert (task.status.state, task.status.attempt_count) == (task_pb2.TASK_STATE_READY, 0)
    assert len(await lease(served)) == 1


async def test_an_answer_stays_under_what_a_client_takes_and_the_rest_is_released(serve):
    served = await serve(inline_limit=1 << 20)
    for _ in range(6):
        await served.create(payload=bytes(1 << 20))
    first = await lease(served)
    assert 1 <= len(first) < 6
    stats = (await served.queues.GetStats(queue_service_pb2.GetQueueStatsRequest(name="queues/default"))).stats
    assert (stats.leased_count, stats.ready_count) == (len(first), 6 - len(first))
    assert {leased.attempt for leased in await lease(served)} == {1}


async def test_a_paused_queue_gives_nothing_until_it_is_resumed(served):
    await served.queues.Pause(queue_service_pb2.PauseQueueRequest(name="queues/default"))
    await served.create()
    call = await waiting(served)
    await served.queues.Resume(queue_service_pb2.ResumeQueueRequest(name="queues/default"))
    assert len(await call) == 1


# --- Settle and Renew


def end(leased, outcome=pb.OUTCOME_SUCCEEDED, **fields):
    return pb.Settlement(lease_id=leased if isinstance(leased, str) else leased.lease_id, outcome=outcome, **fields)


async def settle(served, *settlements):
    return dict((await served.leases.Settle(pb.SettleRequest(settlements=settlements))).failed_leases)


def lost(statuses):
    """Return the leases that were lost, having looked at what is said of them."""
    for lease_id, status in statuses.items():
        refusal = unpack(status)
        assert (refusal.code, refusal.reason, refusal.domain) == (grpc.StatusCode.ABORTED, "LEASE_LOST", "adjourn")
        assert refusal.metadata == {"lease_id": lease_id}
    return set(statuses)


async def test_every_outcome_does_what_it_says(served):
    made = [await served.create(priority=-number, retain=Duration(seconds=60)) for number in range(5)]
    leases = await lease(served)
    error = task_pb2.TaskError(type="ValueError", message="oops", traceback="Traceback")
    failed = await settle(
        served,
        end(leases[0], result=b"42"),
        end(leases[1], pb.OUTCOME_RETRY, error=error, delay=Duration(seconds=60)),
        end(leases[2], pb.OUTCOME_FAILED, error=error),
        end(leases[3], pb.OUTCOME_RELEASED),
        end(leases[4], pb.OUTCOME_CRASHED, error=error),
    )
    assert failed == {}
    tasks = [await served.get(task.name) for task in made]
    states = [task.status.state for task in tasks]
    assert states[:4] == [
        task_pb2.TASK_STATE_SUCCEEDED,
        task_pb2.TASK_STATE_SCHEDULED,
        task_pb2.TASK_STATE_DEAD,
        task_pb2.TASK_STATE_READY,
    ]
    assert states[4] in (task_pb2.TASK_STATE_SCHEDULED, task_pb2.TASK_STATE_READY)
    assert [task.status.attempt_count for task in tasks] == [1, 1, 1, 0, 1]
    assert tasks[0].status.result == b"42"
    assert tasks[2].status.attempts[0].error == error
    assert tasks[4].status.attempts[0].outcome == task_pb2.ATTEMPT_OUTCOME_CRASHED


async def test_a_stale_lease_is_refused_and_the_others_of_the_call_are_settled(served):
    made = [await served.create(), await served.create()]
    first, second = await lease(served)
    await settle(served, end(first, pb.OUTCOME_RELEASED))
    (again,) = await lease(served)
    assert lost(await settle(served, end(first), end(second), end("never-was"))) == {first.lease_id, "never-was"}
    assert await served.state(made[0].name) == task_pb2.TASK_STATE_LEASED
    assert await settle(served, end(again)) == {}


async def test_renewing_tells_which_leases_are_lost(served):
    await served.create()
    (leased,) = await lease(served)
    request = pb.RenewRequest(lease_ids=[leased.lease_id, "stale"], lease_duration=Duration(seconds=600))
    assert lost(dict((await served.leases.Renew(request)).failed_leases)) == {"stale"}
    status = (await served.get(leased.task.name)).status
    assert status.lease_expire_time.seconds - status.create_time.seconds >= 590
