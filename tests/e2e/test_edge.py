"""What the service says to bad input and at its limits, over a real socket: nothing lost, and what to do is said."""

import asyncio
import logging
import os
import socket
import sqlite3
import subprocess
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.factories import make_uid

from adjourn.v1 import queue_pb2, queue_service_pb2, task_pb2, task_service_pb2
from adjourn_service import names
from adjourn_service.errors import ConfigError
from adjourn_service.model import SECOND_US
from adjourn_service.server import SERVICES

from . import rules
from .conftest import new_id, refused, unpack

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def item(queue="default", task_id="", request_id=None, **fields):
    """Return one create; a task without a field that is set would be none."""
    return task_service_pb2.CreateTaskRequest(
        parent=f"queues/{queue}",
        task=task_pb2.Task(**(fields or {"payload": b"p"})),
        task_id=task_id,
        request_id=new_id() if request_id is None else request_id,
    )


async def batch(served, *items):
    """Make a batch; returns what was refused, by index."""
    response = await served.tasks.BatchCreate(task_service_pb2.BatchCreateTasksRequest(requests=items))
    return {index: unpack(status) for index, status in response.failed_requests.items()}


async def exists(served, create):
    request = task_service_pb2.GetTaskRequest(name=f"{create.parent}/tasks/{create.request_id}")
    try:
        await served.tasks.Get(request)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return False
    return True


def at(**ahead):
    return Timestamp(seconds=round((datetime.now(UTC) + timedelta(**ahead)).timestamp()))


# --- declared rules


def invalid(refusal, path):
    """Say whether a refusal names this field, and no other."""
    named = {field for field in refusal.fields if field == path or field.startswith(f"{path}[")}
    return (refusal.code, refusal.reason, refusal.domain) == (INVALID, "INVALID_FIELD", "adjourn") and (
        bool(named) and named == set(refusal.fields)
    )


CALLS = [(service.name, method.name) for service in rules.SERVICES for method in service.methods]


@pytest.mark.parametrize(("service", "method"), [call for call in CALLS if call[1] not in ("Work", "BatchCreate")])
async def test_every_rule_of_every_field_is_enforced(served, service, method):
    call = getattr(getattr(served, service.lower()), method)
    number = 0
    for number, case in enumerate(rules.cases(service, method), 1):  # noqa: B007
        refusal = await refused(call(case.request))
        assert invalid(refusal, case.path), (case.path, case.said, refusal)
    assert number > 0


async def test_every_rule_of_the_work_stream_is_enforced(served):
    for case in rules.cases("Leases", "Work"):
        stream = served.leases.Work()
        if not case.path.startswith("hello"):
            hello = type(case.request)(hello=rules.VALID["WorkerHello"])
            await stream.write(hello)
            case.request.ClearField("hello")
        await stream.write(case.request)

        async def end(stream=stream):
            while await stream.read() is not grpc.aio.EOF:
                pass

        refusal = await refused(end())
        assert invalid(refusal, case.path), (case.path, case.said, refusal)


async def test_an_item_of_a_batch_that_breaks_a_rule_fails_alone(served):
    for case in rules.cases("Tasks", "BatchCreate"):
        if not case.path.startswith("requests["):
            assert invalid(await refused(served.tasks.BatchCreate(case.request)), case.path)
            continue
        before, after = item(), item(tag="t")
        request = task_service_pb2.BatchCreateTasksRequest(requests=[before, case.request.requests[0], after])
        failed = (await served.tasks.BatchCreate(request)).failed_requests
        assert list(failed) == [1], (case.path, case.said)
        refusal = unpack(failed[1])
        if case.path.endswith("request_id") and not case.request.requests[0].request_id:
            assert refusal.fields.keys() == {"requests[1].request_id"}
        else:
            assert invalid(refusal, case.path.replace("[0]", "[1]", 1)), (case.path, case.said, refusal)
        assert await exists(served, before)
        assert await exists(served, after)


@pytest.mark.parametrize("number", [0, 1001])
async def test_a_batch_of_none_or_too_many_is_refused_as_a_whole(served, number):
    items = [item() for _ in range(number)]
    request = task_service_pb2.BatchCreateTasksRequest(requests=items)
    assert invalid(await refused(served.tasks.BatchCreate(request)), "requests")
    for create in items[:1]:
        assert not await exists(served, create)


async def test_a_batch_of_the_largest_size_is_made(served):
    assert await batch(served, *[item() for _ in range(1000)]) == {}


async def test_a_rule_over_several_fields_is_told_by_their_message(served):
    policy = queue_pb2.RetryPolicy(min_backoff=Duration(seconds=2), max_backoff=Duration(seconds=1))
    assert invalid(await refused(served.tasks.Create(item(retry_policy=policy))), "task.retry_policy")


# --- creating


async def test_eta_and_countdown_exclude_each_other(served):
    create = item(eta=at(seconds=5), countdown=Duration(seconds=5))
    assert invalid(await refused(served.tasks.Create(create)), "task.eta")
    assert invalid((await batch(served, item(), create))[1], "requests[1].task.eta")


async def test_an_eta_is_at_most_366_days_ahead(served):
    assert invalid(await refused(served.tasks.Create(item(eta=at(days=367)))), "task.eta")
    assert await batch(served, item(eta=at(days=365))) == {}


@pytest.mark.parametrize("eta", [Timestamp(seconds=1 << 60), Timestamp(seconds=-(1 << 60)), Timestamp(nanos=-1)])
async def test_an_eta_that_is_no_moment_is_refused(served, eta):
    assert invalid(await refused(served.tasks.Create(item(eta=eta))), "task.eta")


async def test_an_eta_that_is_past_means_at_once(served):
    made = await served.create(eta=Timestamp(seconds=1))
    assert await served.state(made.name) == task_pb2.TASK_STATE_READY


async def test_a_batch_needs_a_request_id_for_each_and_a_single_create_does_not(served):
    assert invalid((await batch(served, item(request_id="")))[0], "requests[0].request_id")
    assert (await served.tasks.Create(item(request_id=""))).task.uid


async def test_a_payload_is_taken_up_to_the_limit_and_refused_above_it(serve):
    served = await serve(inline_limit=100)
    assert await batch(served, item(payload=bytes(100)), item(payload=bytes(100), tag="t")) == {}
    singles = [await refused(served.tasks.Create(item(payload=bytes(101))))]
    items = await batch(served, item(payload=bytes(101)), item(payload=bytes(101), tag="t"))
    for refusal in [*singles, *items.values()]:
        assert (refusal.code, refusal.reason) == (INVALID, "PAYLOAD_TOO_LARGE")
        assert refusal.metadata == {"limit_bytes": "100", "size_bytes": "101"}
    assert list(items) == [0, 1]


async def test_an_unknown_queue_is_told_for_its_item_alone(served):
    good = item()
    failed = await batch(served, item("nowhere"), good, item("-"))
    assert {index: refusal.reason for index, refusal in failed.items()} == dict.fromkeys((0, 2), "QUEUE_NOT_FOUND")
    assert failed[0].metadata == {"queue": "nowhere"}
    assert await exists(served, good)
    assert (await refused(served.tasks.Create(item("nowhere")))).reason == "QUEUE_NOT_FOUND"


async def test_no_parent_means_the_default_queue(served):
    request = task_service_pb2.CreateTaskRequest(task=task_pb2.Task(payload=b"p"))
    assert (await served.tasks.Create(request)).task.name.startswith("queues/default/tasks/")


async def test_a_name_is_taken_while_its_task_lives_and_for_a_time_after(served):
    made = await served.create(task_id="welcome")
    refusal = await refused(served.create(task_id="welcome"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "TASK_EXISTS")
    assert refusal.metadata == {"task": made.name}
    await served.tasks.Delete(task_service_pb2.DeleteTaskRequest(name=made.name))
    refusal = await refused(served.create(task_id="welcome"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "TASK_NAME_TOMBSTONED")
    assert refusal.metadata == {"task": made.name}


async def test_the_same_create_again_is_the_same_task(served):
    create = item(task_id="once")
    first = await served.tasks.Create(create)
    assert await served.tasks.Create(create) == first
    assert await batch(served, create, create) == {}


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_request_id_of_another_time_is_refused(served, hours):
    moment = datetime.now(UTC) + timedelta(hours=hours)
    uid = names.format_uid(make_uid(round(moment.timestamp() * SECOND_US)))
    refusal = await refused(served.tasks.Create(item(request_id=uid)))
    assert (refusal.code, refusal.reason) == (INVALID, "REQUEST_ID_OUT_OF_WINDOW")
    assert refusal.metadata["window_seconds"] == "600"
    assert abs(int(refusal.metadata["skew_seconds"]) - hours * 3600) < 30
    assert (await batch(served, item(request_id=uid)))[0].reason == "REQUEST_ID_OUT_OF_WINDOW"


async def test_fields_that_are_the_service_s_are_ignored(served):
    made = await served.create(
        name="queues/x/tasks/y", uid="z", status=task_pb2.TaskStatus(state=task_pb2.TASK_STATE_DEAD, attempt_count=7)
    )
    task = await served.get(made.name)
    assert (task.name, task.uid) == (made.name, made.uid)
    assert (task.status.state, task.status.attempt_count) == (task_pb2.TASK_STATE_READY, 0)


# --- lists


async def names_of(served, **fields):
    names, token = [], ""
    while True:
        request = task_service_pb2.ListTasksRequest(parent="queues/-", page_token=token, **fields)
        response = await served.tasks.List(request)
        names += [task.name for task in response.tasks]
        token = response.next_page_token
        if not token:
            return names


async def test_pages_of_tasks_add_up_to_the_list(served):
    made = [(await served.create(task_id=f"t{number}")).name for number in range(7)]
    assert await names_of(served, page_size=3) == made
    assert await names_of(served, page_size=3, tag="none") == []


async def test_pages_of_queues_add_up_to_the_list(served):
    for name in "cab":
        await served.queues.Create(queue_service_pb2.CreateQueueRequest(queue=queue_pb2.Queue(name=f"queues/{name}")))
    seen, token = [], ""
    while True:
        page = await served.queues.List(queue_service_pb2.ListQueuesRequest(page_size=2, page_token=token))
        seen += [queue.name for queue in page.queues]
        token = page.next_page_token
        if not token:
            break
    assert seen == ["queues/a", "queues/b", "queues/c", "queues/default"]


@pytest.mark.parametrize("token", ["garbage", "Z2FyYmFnZQ==", "=", "ü", "AAAA", "Ojo6", " "])
async def test_a_page_token_that_is_none_is_refused(served, token):
    for call in (
        served.tasks.List(task_service_pb2.ListTasksRequest(parent="queues/-", page_token=token)),
        served.queues.List(queue_service_pb2.ListQueuesRequest(page_token=token)),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (INVALID, "PAGE_TOKEN")


async def test_a_page_token_of_another_list_is_refused(served):
    for _ in range(3):
        await served.create(tag="a")
    request = task_service_pb2.ListTasksRequest(parent="queues/-", page_size=1, tag="a")
    token = (await served.tasks.List(request)).next_page_token
    for fields in ({"parent": "queues/default", "tag": "a"}, {"parent": "queues/-"}):
        other = task_service_pb2.ListTasksRequest(page_token=token, **fields)
        assert (await refused(served.tasks.List(other))).reason == "PAGE_TOKEN"
    queues = queue_service_pb2.ListQueuesRequest(page_token=token)
    assert (await refused(served.queues.List(queues))).reason == "PAGE_TOKEN"


async def test_a_list_of_large_tasks_comes_in_pages_that_a_client_takes(serve):
    served = await serve(inline_limit=1 << 20)
    made = [(await served.create(payload=bytes(1 << 20))).name for _ in range(6)]
    assert await names_of(served, view=task_pb2.TASK_VIEW_FULL) == made


# --- queues


async def make_queue(served, name="q", **fields):
    request = queue_service_pb2.CreateQueueRequest(queue=queue_pb2.Queue(name=f"queues/{name}", **fields))
    return (await served.queues.Create(request)).queue


async def update(served, *paths, **fields):
    mask = FieldMask(paths=paths) if paths else None
    request = queue_service_pb2.UpdateQueueRequest(queue=queue_pb2.Queue(name="queues/q", **fields), update_mask=mask)
    return (await served.queues.Update(request)).queue


async def test_a_queue_says_the_defaults_that_it_was_not_given(served):
    queue = await make_queue(served)
    assert queue.state == queue_pb2.QUEUE_STATE_RUNNING
    retry = queue.retry_policy
    assert (retry.max_attempts, retry.max_doublings, retry.stop, retry.jitter) == (100, 16, queue_pb2.STOP_RULE_ANY, 0)
    assert (retry.min_backoff, retry.max_backoff) == (Duration(nanos=100_000_000), Duration(seconds=3600))
    assert not queue.HasField("rate_limits")
    assert (queue.lease_duration.seconds, queue.tombstone_ttl.seconds) == (30, 3600)
    assert (queue.result_retention.seconds, queue.dead_letter_retention.seconds) == (0, 14 * 86_400)
    assert not queue.HasField("task_deadline")
    assert queue.create_time == queue.update_time


async def test_with_one_back_off_given_the_other_gives_way(served):
    queue = await make_queue(served, "a", retry_policy=queue_pb2.RetryPolicy(min_backoff=Duration(seconds=7200)))
    assert queue.retry_policy.max_backoff == Duration(seconds=7200)
    queue = await make_queue(served, "b", retry_policy=queue_pb2.RetryPolicy(max_backoff=Duration(nanos=1000)))
    assert queue.retry_policy.min_backoff == Duration(nanos=1000)


async def test_what_is_said_to_mean_unlimited_is_kept(served):
    queue = await make_queue(served, retry_policy=queue_pb2.RetryPolicy(max_attempts=0, max_doublings=0))
    assert (queue.retry_policy.max_attempts, queue.retry_policy.max_doublings) == (0, 0)


async def test_a_queue_cannot_be_called_dash(served):
    assert invalid(await refused(make_queue(served, "-")), "queue.name")


async def test_without_a_mask_what_is_set_is_taken_over(served):
    await make_queue(served, lease_duration=Duration(seconds=9), task_deadline=Duration(seconds=60))
    queue = await update(served, tombstone_ttl=Duration(seconds=5))
    assert (queue.lease_duration.seconds, queue.task_deadline.seconds, queue.tombstone_ttl.seconds) == (9, 60, 5)


async def test_a_nested_path_changes_that_field_alone(served):
    await make_queue(served, retry_policy=queue_pb2.RetryPolicy(max_attempts=3, max_doublings=4))
    policy = queue_pb2.RetryPolicy(max_attempts=5, max_doublings=9)
    queue = await update(served, "retry_policy.max_attempts", retry_policy=policy)
    assert (queue.retry_policy.max_attempts, queue.retry_policy.max_doublings) == (5, 4)


async def test_a_named_field_that_is_unset_goes_back_to_its_default(served):
    limits = queue_pb2.RateLimits(max_leases_per_second=5, max_concurrent_leases=3)
    await make_queue(
        served,
        lease_duration=Duration(seconds=9),
        task_deadline=Duration(seconds=60),
        rate_limits=limits,
        retry_policy=queue_pb2.RetryPolicy(max_attempts=3),
    )
    paths = ["lease_duration", "task_deadline", "retry_policy", "rate_limits.max_leases_per_second"]
    queue = await update(served, *paths)
    assert queue.lease_duration.seconds == 30
    assert not queue.HasField("task_deadline")
    assert queue.retry_policy.max_attempts == 100
    assert queue.rate_limits == queue_pb2.RateLimits(max_concurrent_leases=3)


@pytest.mark.parametrize(
    "path",
    [
        "name",
        "state",
        "nonsense",
        "retry_policy.nonsense",
        "lease_duration.seconds",
        "create_time",
        "retry_policy.",
        ".",
        "*",
        "ü",
    ],
)
async def test_a_path_that_cannot_be_updated_is_refused_and_nothing_changed(served, path):
    await make_queue(served)
    refusal = await refused(update(served, "lease_duration", path, lease_duration=Duration(seconds=9)))
    assert invalid(refusal, "update_mask")
    queue = await served.queues.Get(queue_service_pb2.GetQueueRequest(name="queues/q"))
    assert queue.queue.lease_duration.seconds == 30


async def test_an_update_that_would_turn_the_back_offs_around_is_refused(served):
    await make_queue(served)
    policy = queue_pb2.RetryPolicy(min_backoff=Duration(seconds=7200))
    refusal = await refused(update(served, "retry_policy.min_backoff", retry_policy=policy))
    assert invalid(refusal, "queue.retry_policy")


async def test_a_queue_that_is_not_there_is_told_by_every_call(served):
    for verb in ("Get", "Delete", "Pause", "Resume", "Purge"):
        request = getattr(queue_service_pb2, f"{verb}QueueRequest")(name="queues/nowhere")
        refusal = await refused(getattr(served.queues, verb)(request))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "QUEUE_NOT_FOUND")
        assert refusal.metadata == {"queue": "nowhere"}
    assert (await refused(make_queue(served, "default"))).reason == "QUEUE_EXISTS"


# --- the wire


async def test_a_message_that_is_too_large_is_told_with_its_size_and_the_limit(serve):
    served = await serve(max_request_bytes=1 << 20)
    request = task_service_pb2.BatchCreateTasksRequest(requests=[item(payload=bytes(20_000)) for _ in range(100)])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.tasks.BatchCreate(request)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    details = caught.value.details()
    assert str(1 << 20) in details
    assert str(request.ByteSize()) in details
    assert await batch(served, *request.requests[:10]) == {}


async def test_a_refusal_of_much_bad_input_still_fits_into_the_trailers(served):
    headers = {f"{number}{'😀' * 2000}": "😀" * 2001 for number in range(64)}
    refusal = await refused(served.tasks.Create(item(headers=headers, tag="😀" * 501, callable="😀" * 501)))
    assert (refusal.code, refusal.reason) == (INVALID, "INVALID_FIELD")
    assert refusal.fields
    assert refusal.message


async def test_a_bug_is_told_by_an_id_that_is_in_the_log_and_without_its_trace(served, caplog):
    def broken(*_):
        raise RuntimeError("the secret of the trace")

    served.service._store.get_task = broken
    refusal = await refused(served.get("queues/default/tasks/t"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert vars(record)["error_id"] == refusal.metadata["error_id"]
    assert refusal.metadata["error_id"] in refusal.message
    assert "the secret" in str(record.exc_info)
    assert "Traceback" not in str(refusal)
    assert "secret" not in str(refusal)


async def test_health_is_told_of_the_whole_and_of_each_service(served):
    health = health_pb2_grpc.HealthStub(served.channel)
    for service in ("", *SERVICES):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(health_pb2.HealthCheckRequest(service="nonsense"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_says_not_serving_while_draining(serve):
    served = await serve(drain_grace=10)
    watches = []
    for service in ("", *SERVICES):
        watch = health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest(service=service))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watches.append(watch)
    stop = asyncio.ensure_future(served.stop())
    for watch in watches:
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
    await stop


async def test_reflection_lists_the_services(served):
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    answer = await call.read()
    listed = {service.name for service in answer.list_services_response.service}
    assert listed >= {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    call.cancel()


# --- starting


def mounted(folder, options):
    """Mount a disk of our own while the test lasts."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB."""
    yield from mounted(tmp_path / "disk", "size=1m")


@pytest.fixture
def read_only_disk(tmp_path):
    """A disk that even root cannot write."""
    yield from mounted(tmp_path / "disk", "ro")


async def failure(serve, **settings):
    with pytest.raises(ConfigError) as caught:
        await serve(**settings)
    return str(caught.value)


async def test_a_port_that_is_taken_is_told(serve, served):
    said = await failure(serve, listen=served.address)
    assert said.startswith(f"cannot listen on {served.address}: the port is in use")
    assert "--listen" in said


async def test_a_port_taken_by_another_program_is_told(serve):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert "the port is in use" in await failure(serve, listen=f"127.0.0.1:{other.getsockname()[1]}")


@pytest.mark.parametrize("listen", ["192.0.2.1:0", "[::ffff:zz]:0"])
async def test_an_address_that_is_not_ours_is_told(serve, listen):
    assert f"cannot listen on {listen}" in await failure(serve, listen=listen)


async def test_a_store_is_free_again_after_a_failed_start(serve, served, tmp_path):
    store = f"sqlite:///{tmp_path / 'adjourn.db'}"
    await failure(serve, store=store, listen=served.address)
    await (await serve(store=store)).create()


async def test_a_second_service_on_a_store_is_refused(serve, tmp_path):
    store = f"sqlite:///{tmp_path / 'adjourn.db'}"
    first = await serve(store=store)
    assert "is in use by another process" in await failure(serve, store=store)
    await first.create()


async def test_a_file_that_is_no_database_is_refused_and_left_alone(serve, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary, " * 1000)
    before = path.read_bytes()
    said = await failure(serve, store=f"sqlite:///{path}")
    assert str(path) in said
    assert "not a database" in said
    assert path.read_bytes() == before


async def test_a_store_in_a_folder_that_does_not_exist_makes_it(serve, tmp_path):
    await (await serve(store=f"sqlite:///{tmp_path}/a/b/adjourn.db")).create()


async def test_a_store_where_no_folder_can_be_is_refused(serve, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot open the store" in await failure(serve, store=f"sqlite:///{tmp_path}/file/adjourn.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_store_in_a_folder_that_cannot_be_written_is_refused(serve, tmp_path):
    tmp_path.chmod(0o500)
    assert "Permission denied" in await failure(serve, store=f"sqlite:///{tmp_path}/adjourn.db")


async def test_a_store_on_a_disk_that_cannot_be_written_is_refused(serve, read_only_disk):
    assert "Read-only file system" in await failure(serve, store=f"sqlite:///{read_only_disk}/adjourn.db")


async def test_a_store_that_is_a_folder_is_refused(serve, tmp_path):
    assert "cannot open the store" in await failure(serve, store=f"sqlite:///{tmp_path}")


async def test_a_store_of_a_newer_release_is_refused_and_left_alone(serve, tmp_path):
    path = tmp_path / "adjourn.db"
    await (await serve(store=f"sqlite:///{path}")).stop()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 999")
    database.close()
    said = await failure(serve, store=f"sqlite:///{path}")
    assert "has schema 999" in said
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (999,)
    database.close()


# --- a full disk


async def test_a_full_disk_is_told_loses_nothing_and_works_again_when_there_is_room(serve, small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(300_000))
    store = f"sqlite:///{small_disk}/adjourn.db"
    served = await serve(store=store)
    made, refusal = [], None
    while refusal is None:
        create = item(payload=bytes(20_000))
        try:
            await served.tasks.Create(create)
        except grpc.aio.AioRpcError:
            refusal = await refused(served.tasks.Create(create))
        else:
            made.append(create)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL")
    assert "free space" in refusal.message
    assert made
    assert not await exists(served, create)
    ballast.unlink()
    await served.tasks.Create(create)
    await served.stop()
    served = await serve(store=store)
    for each in [*made, create]:
        assert await exists(served, each)


async def test_a_start_on_a_full_disk_is_told(serve, small_disk):
    (small_disk / "ballast").write_bytes(bytes(1_030_000))
    assert "full" in await failure(serve, store=f"sqlite:///{small_disk}/adjourn.db")
