"""Resource names and uids, and their way there and back."""

import uuid

import pytest
import uuid_utils
from hypothesis import given
from hypothesis import strategies as st

from adjourn_service import names

queue_ids = st.from_regex(r"[A-Za-z0-9-]{1,100}", fullmatch=True)
task_names = st.from_regex(r"[A-Za-z0-9_-]{1,500}", fullmatch=True)
uids = st.builds(
    lambda at_ms, rest: (
        at_ms.to_bytes(6, "big") + bytes([0x70 | rest[0] & 0x0F, rest[1], 0x80 | rest[2] & 0x3F]) + rest[3:]
    ),
    st.integers(0, 2**48 - 1),
    st.binary(min_size=10, max_size=10),
)


@given(queue_ids)
def test_a_queue_name_comes_back(queue: str):
    assert names.parse_queue_name(names.queue_name(queue)) == queue


@given(queue_ids, task_names, uids)
def test_a_task_name_comes_back(queue: str, name: str, uid: bytes):
    assert names.parse_task_name(names.task_name(queue, name, uid)) == (queue, name)
    assert names.parse_task_name(names.task_name(queue, None, uid)) == (queue, names.format_uid(uid))


@given(uids)
def test_a_uid_comes_back(uid: bytes):
    assert names.parse_uid(names.format_uid(uid)) == uid
    assert names.format_uid(uid) == str(uuid.UUID(bytes=uid))


@given(st.text())
def test_what_does_not_parse_is_refused_and_what_does_is_the_same(text: str):
    uid = names.parse_uid(text)
    assert uid is None or names.format_uid(uid) == text
    try:
        queue = names.parse_queue_name(text)
    except ValueError:
        return
    assert names.queue_name(queue) == text


@pytest.mark.parametrize(
    "name",
    ["", "queues/", "queues", "/q", "queue/q", "queues/q/", "queues/a_b", "queues/a b", "queues/ä", "queues/q\n",
     "queues/" + "q" * 101, "queues//q", "Queues/q"],
)  # fmt: skip
def test_what_is_no_queue_name_is_refused(name: str):
    with pytest.raises(ValueError, match="queues/ID"):
        names.parse_queue_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "queues/q", "queues/q/tasks/", "queues/q/tasks", "queues//tasks/t", "queues/q/tasks/t/", "queues/q/tasks/t\n",
     "queues/q/tasks/a.b", "queues/q/tasks/ä", "queues/q/tasks/" + "t" * 501, "tasks/t", "queues/q/task/t"],
)  # fmt: skip
def test_what_is_no_task_name_is_refused(name: str):
    with pytest.raises(ValueError, match="queues/QUEUE/tasks/TASK"):
        names.parse_task_name(name)


def test_all_queues_have_a_name_of_their_own():
    assert names.parse_queue_name("queues/-") == names.ANY_QUEUE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "018bcfe5-6800-7000-8000-00000000000",
        "018bcfe5-6800-7000-8000-0000000000000",
        "018BCFE5-6800-7000-8000-000000000000",
        "018bcfe5-6800-4000-8000-000000000000",
        "018bcfe5-6800-7000-c000-000000000000",
        "018bcfe568007000800000000000000000",
        "018bcfe5-6800-7000-8000-00000000000g",
        "018bcfe5-6800-7000-8000-000000000000\n",
    ],
)
def test_what_is_no_canonical_uuid7_is_no_uid(text: str):
    assert names.parse_uid(text) is None


def test_a_uuid7_as_clients_make_them_is_a_uid_of_its_moment():
    made = uuid_utils.uuid7()
    assert names.parse_uid(str(made)) == made.bytes
    assert names.uid_time_us(made.bytes) == made.timestamp * 1000


@given(uids, st.integers(0, 2**48 * 1000 - 1))
def test_the_floor_of_a_moment_parts_the_uids_before_it_from_the_others(uid: bytes, at_us: int):
    assert (uid < names.uid_floor(at_us)) == (names.uid_time_us(uid) // 1000 < at_us // 1000)


def test_the_floor_of_a_moment_before_the_epoch_is_below_every_uid():
    assert names.uid_floor(-5_000_000) == bytes(16)
