"""Creating tasks: identity, names, due moments, and what is refused."""

import pytest

from adjourn_service import names
from adjourn_service.errors import QueueNotFound, RequestIdOutOfWindow, TaskExists, TaskNameTombstoned
from adjourn_service.model import HOUR_US, SECOND_US, Outcome, TaskRecord, TaskState
from adjourn_service.store.base import Create
from tests.conformance.conftest import WINDOW_US
from tests.factories import StoreDriver, make_uid


def test_a_task_without_options_is_ready_at_once(store: StoreDriver):
    task = store.create(body=b"\x00call")
    assert store.record(task) == TaskRecord(
        uid=task.uid,
        queue="default",
        name=None,
        state=TaskState.READY,
        priority=0,
        tag="",
        key="",
        body=b"\x00call",
        created_at=store.now,
        due_at=store.now,
        attempts=0,
    )


def test_every_option_is_kept_with_the_task(store: StoreDriver):
    eta_at = store.now + HOUR_US
    task = store.create(name="welcome-42", eta_at=eta_at, priority=-7, tag="mail", key="customer-1")
    record = store.must(task)
    assert (record.name, record.due_at, record.state) == ("welcome-42", eta_at, TaskState.SCHEDULED)
    assert (record.priority, record.tag, record.key) == (-7, "mail", "customer-1")


def test_countdown_counts_from_the_create(store: StoreDriver):
    task = store.create(countdown_us=90 * SECOND_US)
    assert store.must(task).due_at == store.now + 90 * SECOND_US
    assert store.state(task) is TaskState.SCHEDULED
    assert store.lease() == []


def test_an_eta_in_the_past_means_now(store: StoreDriver):
    task = store.create(eta_at=store.now - HOUR_US)
    assert store.state(task) is TaskState.READY
    assert store.must(task).due_at == store.now


def test_an_eta_of_this_very_moment_is_ready(store: StoreDriver):
    task = store.create(eta_at=store.now, countdown_us=HOUR_US)
    assert store.state(task) is TaskState.READY


def test_the_default_queue_is_there_from_the_start(store: StoreDriver):
    assert [queue.id for queue in store.store.list_queues()] == ["default"]
    store.create("default")


def test_a_create_in_an_unknown_queue_is_refused(store: StoreDriver):
    with pytest.raises(QueueNotFound) as refused:
        store.create("nowhere")
    assert refused.value.metadata == {"queue": "nowhere"}


def test_a_refused_task_does_not_disturb_the_others_of_its_batch(store: StoreDriver):
    store.create(name="taken")
    good, again, nowhere, late = (
        store.new(),
        store.new(name="taken"),
        store.new("nowhere"),
        store.new(uid=make_uid(store.now - 2 * WINDOW_US)),
    )
    last = store.new(name="free")
    (refusals,) = store.apply(Create([good, again, nowhere, late, last]))
    assert isinstance(refusals, dict)
    assert {index: type(refusal) for index, refusal in refusals.items()} == {
        1: TaskExists,
        2: QueueNotFound,
        3: RequestIdOutOfWindow,
    }
    assert store.state(good) is store.state(last) is TaskState.READY
    assert store.stats().created_total == 3


def test_an_unknown_queue_is_refused_before_a_bad_uid(store: StoreDriver):
    with pytest.raises(QueueNotFound):
        store.create("nowhere", uid=make_uid(store.now - 2 * WINDOW_US))


# --- identity


def test_a_repeated_create_is_the_same_create(store: StoreDriver):
    task = store.create(body=b"first")
    store.create_all(task, task)
    store.create(uid=task.uid, body=b"second", priority=9)
    assert len(store.list()) == store.stats().ready == store.stats().created_total == 1
    assert store.must(task).body == b"first"


def test_a_uid_twice_in_one_batch_is_one_task(store: StoreDriver):
    plain, named = store.new(), store.new(name="n", priority=1)
    store.create_all(plain, named, plain, named, store.new())
    assert store.stats().created_total == store.stats().ready == len(store.lease()) == 3


def test_a_repeated_create_of_a_named_task_is_no_conflict_with_itself(store: StoreDriver):
    task = store.create(name="once")
    store.create_all(task)
    store.succeed(store.lease_one())
    store.create_all(task)
    assert store.stats().created_total == 1
    assert store.state(task) is None


def test_a_uid_belongs_to_one_queue(store: StoreDriver):
    store.create_queue("q")
    task = store.create()
    store.create("q", uid=task.uid)
    assert store.stats("q").created_total == 0
    assert store.store.get_task("q", names.format_uid(task.uid)) is None


@pytest.mark.parametrize("end", ["succeeded", "deleted", "purged", "queue deleted"])
def test_a_create_is_remembered_after_its_task_has_gone(store: StoreDriver, end: str):
    store.create_queue("q")
    task = store.create("q")
    if end == "succeeded":
        store.succeed(store.lease_one("q"))
    elif end == "deleted":
        store.delete(task)
    else:
        store.purge("q")
    if end == "queue deleted":
        store.delete_queue("q")
        store.create_queue("q")
    store.maintain()
    store.advance(us=WINDOW_US)
    store.maintain()
    store.create_all(task)
    assert store.state(task) is None
    assert store.stats("q").ready == 0


def test_a_create_after_the_window_is_refused_and_not_made_again(store: StoreDriver):
    gone, live = store.create(), store.create(countdown_us=HOUR_US)
    store.succeed(store.lease_one())
    store.advance(us=WINDOW_US + 1000)
    for _ in range(2):
        for task in (gone, live):
            with pytest.raises(RequestIdOutOfWindow):
                store.create_all(task)
        store.maintain()
    assert store.state(live) is TaskState.SCHEDULED


def test_a_task_is_found_by_its_uid_however_old_it_is(store: StoreDriver):
    task = store.create(countdown_us=24 * HOUR_US)
    store.advance(us=23 * HOUR_US)
    store.maintain()
    assert store.state(task) is TaskState.SCHEDULED
    store.cancel(task)


@pytest.mark.parametrize("skew_us", [-WINDOW_US, 0, WINDOW_US])
def test_the_edges_of_the_window_belong_to_it(store: StoreDriver, skew_us: int):
    task = store.create(uid=make_uid(store.now + skew_us))
    assert store.state(task) is TaskState.READY


@pytest.mark.parametrize("skew_us", [-WINDOW_US - 1000, WINDOW_US + 1000])
def test_a_uid_outside_the_window_is_refused(store: StoreDriver, skew_us: int):
    with pytest.raises(RequestIdOutOfWindow) as refused:
        store.create(uid=make_uid(store.now + skew_us))
    assert refused.value.metadata["window_seconds"] == "600"
    assert store.stats().created_total == 0


def test_a_uid_from_ahead_of_the_clock_is_remembered_for_the_window_after_its_time(store: StoreDriver):
    task = store.create(uid=make_uid(store.now + WINDOW_US))
    store.succeed(store.lease_one())
    store.advance(us=2 * WINDOW_US)
    store.maintain()
    store.create_all(task)
    assert store.stats().created_total == 1


# --- names


def test_a_name_is_taken_while_its_task_lives(store: StoreDriver):
    for state in (TaskState.SCHEDULED, TaskState.READY, TaskState.LEASED):
        queue = store.create_queue(f"q-{state.name}").id
        store.task_in(state, queue, name="n")
        with pytest.raises(TaskExists) as refused:
            store.create(queue, name="n")
        assert refused.value.metadata == {"task": f"queues/{queue}/tasks/n"}


@pytest.mark.parametrize("state", [TaskState.SUCCEEDED, TaskState.DEAD, TaskState.CANCELLED])
def test_a_name_is_taken_while_its_ended_task_is_kept(store: StoreDriver, state: TaskState):
    store.task_in(state, name="n")
    with pytest.raises(TaskExists):
        store.create(name="n")


def test_names_are_unique_within_a_queue_and_a_batch_only(store: StoreDriver):
    store.create_queue("q")
    store.create(name="n")
    store.create("q", name="n")
    first, second = store.new(name="m"), store.new(name="m")
    (refusals,) = store.apply(Create([first, second]))
    assert isinstance(refusals, dict)
    assert list(refusals) == [1]
    assert store.state(first) is TaskState.READY


@pytest.mark.parametrize("end", ["succeeded", "deleted", "purged", "dead", "cancelled"])
def test_a_used_name_is_a_tombstone_until_its_ttl_is_over(store: StoreDriver, end: str):
    store.create_queue("q", tombstone_ttl_us=100 * SECOND_US, dead_letter_retention_us=0, max_attempts=1)
    task = store.create("q", name="n")
    match end:
        case "succeeded":
            store.succeed(store.lease_one("q"))
        case "deleted":
            store.delete(task)
        case "purged":
            store.purge("q")
        case "dead":
            store.fail(store.lease_one("q"))
        case "cancelled":
            store.cancel(task)
    with pytest.raises(TaskNameTombstoned) as refused:
        store.create("q", name="n")
    assert refused.value.metadata == {"task": "queues/q/tasks/n"}
    store.advance(seconds=100, us=-1)
    store.maintain()
    with pytest.raises(TaskNameTombstoned):
        store.create("q", name="n")
    store.advance(us=1)
    store.create("q", name="n")


def test_a_tombstone_past_its_ttl_is_no_hindrance_before_maintenance_and_none_after(store: StoreDriver):
    store.create_queue("q", tombstone_ttl_us=SECOND_US)
    for _ in range(2):
        store.create("q", name="n")
        store.succeed(store.lease_one("q"))
        store.advance(seconds=1)
    store.maintain()
    live = store.create("q", name="n")
    store.advance(seconds=5)
    store.maintain()
    assert store.state(live) is TaskState.READY
    with pytest.raises(TaskExists):
        store.create("q", name="n")


def test_a_tombstone_of_a_kept_task_starts_when_it_is_removed(store: StoreDriver):
    store.create_queue("q", tombstone_ttl_us=100 * SECOND_US, result_retention_us=1000 * SECOND_US)
    store.create("q", name="n")
    store.succeed(store.lease_one("q"))
    store.advance(seconds=1000)
    store.maintain()
    store.advance(seconds=99)
    with pytest.raises(TaskNameTombstoned):
        store.create("q", name="n")
    store.advance(seconds=1)
    store.create("q", name="n")


def test_no_tombstone_is_made_with_a_ttl_of_zero(store: StoreDriver):
    store.create_queue("q", tombstone_ttl_us=0)
    store.create("q", name="n")
    store.succeed(store.lease_one("q"))
    store.create("q", name="n")
    assert store.stats("q").created_total == 2


def test_a_refused_name_leaves_the_uid_free(store: StoreDriver):
    store.create(name="n")
    refused = store.new(name="n")
    with pytest.raises(TaskExists):
        store.create_all(refused)
    store.create_all(refused._replace(name="m"))
    assert store.must(refused).name == "m"


# --- bodies and text


def test_big_bodies_and_results_come_back_as_they_went_in(store: StoreDriver):
    body = bytes(range(256)) * 4096
    task = store.create(body=body, retain_us=HOUR_US)
    empty = store.create(body=b"", retain_us=HOUR_US)
    first, second = store.lease()
    assert (first.body, second.body) == (body, b"")
    store.settle(first, Outcome.SUCCEEDED, result=body[::-1])
    store.settle(second, Outcome.SUCCEEDED)
    assert (store.must(task).body, store.must(task).result) == (body, body[::-1])
    assert (store.must(empty).body, store.must(empty).result) == (b"", b"")


@pytest.mark.parametrize("text", ["ä ö ü", "日本語", "🚀", "a'b\"c", "%_\\", "\x00", "t", "k"])
def test_tags_and_keys_are_any_text(store: StoreDriver, text: str):
    task = store.create(tag=text, key=text[::-1])
    store.create(tag=text + "x", key="x")
    (listed,) = store.list(tag=text)
    assert (listed.uid, listed.tag, listed.key) == (task.uid, text, text[::-1])
    (leased,) = store.lease(tag=text)
    assert leased.uid == task.uid
