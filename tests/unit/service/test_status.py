"""What every refusal looks like as google.rpc.Status."""

import inspect
import json

import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

from adjourn.v1 import error_reason_pb2
from adjourn_service import errors
from adjourn_service.rpc.interceptors import InternalError
from adjourn_service.rpc.status import to_status

TRAILERS_MAX = 8192
"""What gRPC takes of trailers unless told otherwise."""

REFUSALS = [
    errors.InvalidField({"task.tag": "is too long", "parent": "is odd"}),
    errors.QueueNotFound("q"),
    errors.QueueExists("q"),
    errors.QueueNotEmpty("q"),
    errors.QueueProtected("default"),
    errors.TaskNotFound("queues/q/tasks/t"),
    errors.TaskExists("queues/q/tasks/t"),
    errors.TaskNameTombstoned("queues/q/tasks/t"),
    errors.TaskStateRefused("queues/q/tasks/t", "DEAD", "run"),
    errors.PayloadTooLarge(101, 100),
    errors.RequestIdOutOfWindow(-3_600_000_000, 600_000_000),
    errors.LeaseLost("lease"),
    errors.PageTokenInvalid(),
    errors.StoreFull(),
    errors.StoreUnavailable("the disk is away"),
    errors.ShuttingDown(),
    InternalError("id"),
]

METADATA = {
    "QUEUE_NOT_FOUND": {"queue"},
    "QUEUE_EXISTS": {"queue"},
    "QUEUE_NOT_EMPTY": {"queue"},
    "TASK_NOT_FOUND": {"task"},
    "TASK_EXISTS": {"task"},
    "TASK_NAME_TOMBSTONED": {"task"},
    "TASK_STATE": {"task", "state"},
    "PAYLOAD_TOO_LARGE": {"limit_bytes", "size_bytes"},
    "REQUEST_ID_OUT_OF_WINDOW": {"window_seconds", "skew_seconds"},
    "LEASE_LOST": {"lease_id"},
    "INTERNAL": {"error_id"},
}
"""As error_reason.proto promises."""


def detail(status, kind):
    """Return the detail of this kind; None if there is none."""
    found = kind()
    return next((found for packed in status.details if packed.Unpack(found)), None)


def reasons():
    return {
        name.removeprefix("ERROR_REASON_")
        for name in error_reason_pb2.DESCRIPTOR.enum_types_by_name["ErrorReason"].values_by_name
    } - {"UNSPECIFIED"}


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: error.reason)
def test_a_refusal_has_its_reason_and_what_the_proto_promises_with_it(error):
    status = to_status(error)
    info = detail(status, ErrorInfo)
    assert status.message == error.message
    assert info.domain == "adjourn"
    assert info.reason in reasons()
    assert set(info.metadata) >= METADATA.get(info.reason, set())


def test_every_reason_of_the_proto_has_a_refusal_and_every_refusal_a_reason():
    assert {error.reason for error in REFUSALS} == reasons()
    kinds = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.ServiceError) and kind is not errors.ServiceError
    }
    assert kinds <= {type(error) for error in REFUSALS}


def test_the_fields_at_fault_are_told_with_what_is_wrong():
    bad = detail(to_status(REFUSALS[0]), BadRequest)
    assert {each.field: each.description for each in bad.field_violations} == REFUSALS[0].violations


def test_only_fields_at_fault_make_a_bad_request():
    assert all(detail(to_status(error), BadRequest) is None for error in REFUSALS[1:])


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: error.reason)
def test_a_wait_is_asked_for_where_trying_again_helps(error):
    assert (detail(to_status(error), RetryInfo) is not None) == (error.code == "UNAVAILABLE")


def test_a_skew_says_its_direction():
    behind, ahead = errors.RequestIdOutOfWindow(-3_600_000_000, 1), errors.RequestIdOutOfWindow(3_600_000_000, 1)
    assert "3600 s behind the service's clock" in behind.message
    assert "3600 s ahead of the service's clock" in ahead.message


def test_a_status_fits_into_the_trailers_however_much_is_wrong():
    path = json.dumps("😀" * 2000)
    status = to_status(errors.InvalidField({f"task.headers[{number}{path}]": "x" * 1000 for number in range(64)}))
    # The message travels beside the details too, and those in base64.
    assert len(status.message.encode()) + len(status.SerializeToString()) * 4 / 3 < TRAILERS_MAX
