"""Leasing, renewing and settling over the wire: by single calls, and by the stream of the shipped worker."""

import asyncio

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from adjourn.v1 import lease_service_pb2 as pb
from adjourn.v1 import queue_pb2, queue_service_pb2, task_pb2, task_service_pb2
from adjourn_service.errors import StoreFull

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


# --- Work


class Worker:
    """One end of a Work stream."""

    def __init__(self, served):
        self.call = served.leases.Work()

    async def say(self, **fields):
        await self.call.write(pb.WorkRequest(**fields))

    async def hello(self, worker_id="w1", *, tag="", key="", held=(), **fields):
        hello = pb.WorkerHello(worker_id=worker_id, queues=[ANY], tag=tag, key=key, held_lease_ids=held)
        await self.say(hello=hello, **fields)

    async def hear(self):
        """Return the next message, which has to come."""
        message = await asyncio.wait_for(self.call.read(), 10)
        assert message is not grpc.aio.EOF, await self.call.details()
        return message

    async def leases(self, number):
        """Return the next leases, which have to be exactly so many."""
        got = []
        while len(got) < number:
            got += (await self.hear()).leases
        assert len(got) == number
        return got

    async def acked(self, sequence):
        """Wait for the acknowledgement of this sequence and return all that was said with it."""
        said = []
        while not said or said[-1].acked_sequence < sequence:
            said.append(await self.hear())
        return said

    async def ended(self):
        """Read to the end of the stream; returns what was said."""
        said = []
        while (message := await asyncio.wait_for(self.call.read(), 10)) is not grpc.aio.EOF:
            said.append(message)
        return said


@pytest.fixture
def work(served):
    """Opens Work streams, and closes them with the test."""
    workers = []

    def connect(to=served):
        workers.append(Worker(to))
        return workers[-1]

    yield connect
    for worker in workers:
        worker.call.cancel()


async def test_the_first_message_must_say_hello(work):
    worker = work()
    await worker.say(credits=1)
    refusal = await refused(worker.ended())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert refusal.fields.keys() == {"hello"}


async def test_only_the_first_message_may_say_hello(work):
    worker = work()
    await worker.hello()
    await worker.hello()
    assert (await refused(worker.ended())).fields.keys() == {"hello"}


async def test_a_message_that_breaks_a_rule_ends_the_stream(work):
    worker = work()
    await worker.hello()
    await worker.say(credits=-1)
    assert (await refused(worker.ended())).fields.keys() == {"credits"}


async def test_tag_and_key_in_a_hello_are_refused_by_their_paths(work):
    worker = work()
    await worker.hello(tag="a", key="b")
    assert (await refused(worker.ended())).fields.keys() == {"hello.tag", "hello.key"}


async def test_no_lease_comes_without_credit_and_each_uses_one(served, work):
    for _ in range(5):
        await served.create()
    worker = work()
    await worker.hello()
    await worker.say(renew_lease_ids=["no-such-lease"])
    assert list((await worker.hear()).leases) == []
    await worker.say(credits=2)
    await worker.leases(2)
    await worker.say(credits=1, renew_lease_ids=["again"])
    await worker.leases(1)
    stats = (await served.queues.GetStats(queue_service_pb2.GetQueueStatsRequest(name="queues/default"))).stats
    assert (stats.leased_count, stats.ready_count) == (3, 2)


async def test_a_create_is_pushed_to_a_worker_that_has_credit(served, work):
    worker = work()
    await worker.hello(credits=10)
    await parked(served)
    made = await served.create(payload=b"p")
    (leased,) = await worker.leases(1)
    assert (leased.task.uid, leased.task.payload, leased.attempt) == (made.uid, b"p", 1)


async def test_what_is_acknowledged_is_durable(served, work):
    made = [await served.create() for _ in range(3)]
    worker = work()
    await worker.hello(credits=3)
    leases = await worker.leases(3)
    await worker.say(
        sequence=7,
        succeeded_lease_ids=[leases[0].lease_id],
        settlements=[end(leases[1], pb.OUTCOME_FAILED), end(leases[2], pb.OUTCOME_RELEASED)],
    )
    await worker.acked(7)
    assert (await refused(served.get(made[0].name))).reason == "TASK_NOT_FOUND"
    assert await served.state(made[1].name) == task_pb2.TASK_STATE_DEAD
    assert await served.state(made[2].name) == task_pb2.TASK_STATE_READY


async def test_nothing_is_acknowledged_before_its_commit(served, work):
    await served.create()
    worker = work()
    await worker.hello(credits=1)
    (leased,) = await worker.leases(1)
    store = served.service._store
    with store._mutex:
        await worker.say(sequence=1, succeeded_lease_ids=[leased.lease_id])
        said = asyncio.ensure_future(worker.acked(1))
        done, _ = await asyncio.wait([said], timeout=0.05)
        assert not done
    await said


async def test_lost_leases_are_told_with_the_acknowledgement(served, work):
    worker = work()
    await worker.hello()
    await worker.say(sequence=1, succeeded_lease_ids=["gone"], renew_lease_ids=["stale"])
    told = {lease_id for message in await worker.acked(1) for lease_id in message.lost_lease_ids}
    while told != {"gone", "stale"}:
        told |= set((await worker.hear()).lost_lease_ids)


@pytest.mark.parametrize("verb", ["Cancel", "Delete"])
async def test_a_running_task_that_is_taken_away_is_told_to_its_worker(served, work, verb):
    made = await served.create()
    worker = work()
    await worker.hello(credits=1)
    (leased,) = await worker.leases(1)
    await getattr(served.tasks, verb)(getattr(task_service_pb2, f"{verb}TaskRequest")(name=made.name))
    assert list((await worker.hear()).cancelled_lease_ids) == [leased.lease_id]
    await worker.say(sequence=1, succeeded_lease_ids=[leased.lease_id])
    assert [list(message.lost_lease_ids) for message in await worker.acked(1)] == [[leased.lease_id]]


async def test_after_drained_no_lease_follows_whatever_the_worker_says(served, work):
    worker = work()
    await worker.hello(credits=5)
    await parked(served)
    await worker.say(drain=True)
    assert (await worker.hear()).drained
    await worker.say(credits=5)
    made = await served.create()
    await worker.say(sequence=1, succeeded_lease_ids=["x"])
    assert all(not message.leases for message in await worker.acked(1))
    assert await served.state(made.name) == task_pb2.TASK_STATE_READY


async def test_a_draining_worker_still_settles_and_renews(served, work):
    await served.create()
    worker = work()
    await worker.hello(credits=2)
    (leased,) = await worker.leases(1)
    await worker.say(drain=True)
    assert (await worker.hear()).drained
    await worker.say(sequence=1, renew_lease_ids=[leased.lease_id], succeeded_lease_ids=[leased.lease_id])
    await worker.acked(1)


async def test_a_worker_that_comes_back_keeps_what_it_holds_and_the_rest_is_released(served, work):
    for _ in range(3):
        await served.create()
    first = work()
    await first.hello(credits=3)
    leases = await first.leases(3)
    first.call.cancel()
    again = work()
    await again.hello(held=[leases[0].lease_id, "not-mine"])
    assert list((await again.hear()).lost_lease_ids) == ["not-mine"]
    tasks = [await served.get(leased.task.name) for leased in leases]
    assert [task.status.state for task in tasks] == [task_pb2.TASK_STATE_LEASED] + [task_pb2.TASK_STATE_READY] * 2
    assert [task.status.attempt_count for task in tasks[1:]] == [0, 0]
    await again.say(sequence=1, succeeded_lease_ids=[leases[0].lease_id])
    assert [list(message.lost_lease_ids) for message in await again.acked(1)] == [[]]


async def test_a_broken_stream_leaves_the_leases_with_their_worker(served, work):
    made = await served.create()
    worker = work()
    await worker.hello(credits=5)
    await worker.leases(1)
    await parked(served)
    worker.call.cancel()
    await parked(served, 0)
    assert await served.state(made.name) == task_pb2.TASK_STATE_LEASED


async def test_a_later_stream_of_a_worker_takes_the_place_of_the_earlier(served, work):
    earlier = work()
    await earlier.hello(credits=10)
    await parked(served)
    later = work()
    await later.hello(credits=10)
    assert await earlier.ended() == []
    assert await earlier.call.code() is grpc.StatusCode.OK
    await parked(served)
    made = await served.create()
    (leased,) = await later.leases(1)
    await served.tasks.Cancel(task_service_pb2.CancelTaskRequest(name=made.name))
    assert list((await later.hear()).cancelled_lease_ids) == [leased.lease_id]


async def test_a_worker_that_says_no_more_is_told_what_it_settled_before_the_stream_ends(served, work):
    await served.create()
    worker = work()
    await worker.hello(credits=1)
    (leased,) = await worker.leases(1)
    await worker.say(sequence=3, succeeded_lease_ids=[leased.lease_id])
    await worker.call.done_writing()
    assert [message.acked_sequence for message in await worker.ended()] == [3]
    assert await worker.call.code() is grpc.StatusCode.OK


async def test_a_stop_of_the_service_ends_the_stream_with_what_to_do(serve, work):
    served = await serve(drain_grace=60)
    await served.create()
    worker = work(served)
    await worker.hello(credits=5)
    (leased,) = await worker.leases(1)
    await worker.say(sequence=1, succeeded_lease_ids=[leased.lease_id])
    await worker.acked(1)
    stop = asyncio.ensure_future(served.stop())
    refusal = await refused(worker.ended())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    await asyncio.wait_for(stop, 10)


async def test_a_stop_of_the_service_ends_calls_that_wait(serve):
    served = await serve(drain_grace=60)
    made = await served.create(countdown=Duration(seconds=60))
    leasing = await waiting(served)
    request = task_service_pb2.WaitTaskRequest(name=made.name, timeout=LONG)
    ending = asyncio.ensure_future(served.tasks.Wait(request))
    await until(lambda: served.service._broker._waiters)
    await asyncio.wait_for(served.stop(), 10)
    for call in (leasing, ending):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


async def test_a_call_that_begins_after_the_stop_is_refused(served, work):
    served.service._leases.stop()
    assert (await refused(lease(served, wait=LONG))).reason == "SHUTTING_DOWN"
    assert (await refused(work().ended())).reason == "SHUTTING_DOWN"


async def test_a_settlement_that_cannot_be_committed_ends_the_stream_and_can_be_repeated(served, work, monkeypatch):
    await served.create()
    worker = work()
    await worker.hello(credits=1)
    (leased,) = await worker.leases(1)

    def full(*_, **__):
        raise StoreFull

    with monkeypatch.context() as patch:
        patch.setattr(served.service._store, "apply", full)
        await worker.say(sequence=1, succeeded_lease_ids=[leased.lease_id])
        refusal = await refused(worker.ended())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL")
    again = work()
    await again.hello(held=[leased.lease_id])
    await again.say(sequence=1, succeeded_lease_ids=[leased.lease_id])
    assert [list(message.lost_lease_ids) for message in await again.acked(1)] == [[]]


async def test_leases_survive_a_restart_of_the_service(serve, work, tmp_path):
    store = f"sqlite:///{tmp_path / 'adjourn.db'}"
    served = await serve(store=store)
    await served.create()
    worker = work(served)
    await worker.hello(credits=1)
    (leased,) = await worker.leases(1)
    await served.stop()
    served = await serve(store=store)
    again = work(served)
    await again.hello(held=[leased.lease_id])
    await again.say(sequence=1, succeeded_lease_ids=[leased.lease_id])
    assert [list(message.lost_lease_ids) for message in await again.acked(1)] == [[]]


async def test_large_tasks_are_pushed_in_several_messages(serve, work):
    served = await serve(inline_limit=1 << 20)
    for _ in range(5):
        await served.create(payload=bytes(1 << 20))
    worker = work(served)
    await worker.hello(credits=5)
    sizes = []
    while sum(sizes) < 5:
        sizes.append(len((await worker.hear()).leases))
    assert sizes == [1] * 5
