"""What callers and the log are told of refusals, bugs and calls that were given up, by every kind of call."""

import asyncio
import logging
from urllib.parse import quote

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_status import rpc_status

from adjourn.v1 import error_reason_pb2
from adjourn_service.errors import InvalidField, QueueNotFound, ServiceError, ShuttingDown, StoreUnavailable
from adjourn_service.rpc.interceptors import ErrorInterceptor
from adjourn_service.rpc.status import MESSAGE_MAX, VIOLATIONS_MAX, to_status

METADATA_MAX = 8192
"""Bytes of trailers that gRPC takes by default."""

KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]


class Handlers:
    """A service with a method of every kind; each does what the test says."""

    def __init__(self):
        self.error: BaseException | None = None
        self.hang = False
        self.entered = asyncio.Event()
        self.left = asyncio.Event()

    async def _act(self):
        self.entered.set()
        try:
            if self.hang:
                await asyncio.Event().wait()
            if self.error is not None:
                raise self.error
        finally:
            self.left.set()

    async def answer(self, request, context):
        await self._act()
        return Empty()

    async def stream(self, request, context):
        yield Empty()
        await self._act()

    def registered(self):
        handlers = {}
        for kind in KINDS:
            make = getattr(grpc, f"{kind}_rpc_method_handler")
            behaviour = self.stream if kind.endswith("_stream") else self.answer
            handlers[kind] = make(behaviour, Empty.FromString, Empty.SerializeToString)
        return grpc.method_handlers_generic_handler("test.Service", handlers)


@pytest.fixture
async def handlers():
    return Handlers()


@pytest.fixture
async def call(handlers):
    """Call the method of a kind and return its call once it has answered what it answers."""
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    server.add_generic_rpc_handlers((handlers.registered(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:

        def start(kind):
            method = getattr(channel, kind)(f"/test.Service/{kind}", Empty.SerializeToString, Empty.FromString)
            return method(iter([Empty()]) if kind.startswith("stream_") else Empty())

        yield start
    await server.stop(None)


async def end(started):
    """Wait for the end of a call and return its error."""

    async def finish():
        if hasattr(started, "__aiter__"):
            async for _ in started:
                pass
        else:
            await started

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await finish()
    return caught.value


def details(status):
    """Return the details of a status by their type."""
    found = {}
    for packed in status.details:
        for kind in (ErrorInfo, BadRequest, RetryInfo):
            message = kind()
            if packed.Unpack(message):
                found[kind] = message
    return found


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refusal_is_told_with_its_reason_by_every_kind_of_call(call, handlers, kind, caplog):
    handlers.error = QueueNotFound("mail")
    error = await end(call(kind))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == str(handlers.error)
    info = details(rpc_status.from_call(error))[ErrorInfo]
    assert (info.reason, info.domain, dict(info.metadata)) == ("QUEUE_NOT_FOUND", "adjourn", {"queue": "mail"})
    assert not caplog.records


@pytest.mark.parametrize("kind", KINDS)
async def test_a_bug_is_told_by_an_id_under_which_the_log_has_its_trace(call, handlers, kind, caplog):
    handlers.error = RuntimeError("the secret inside")
    error = await end(call(kind))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (error.details() or "")
    info = details(rpc_status.from_call(error))[ErrorInfo]
    (record,) = caplog.records
    assert (record.levelno, record.msg, record.method) == (logging.ERROR, "handler raised", f"/test.Service/{kind}")
    assert info.metadata["error_id"] == record.error_id
    assert record.exc_info[1] is handlers.error


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_that_its_caller_gives_up_is_no_error(call, handlers, kind, caplog):
    handlers.hang = True
    started = call(kind)
    if kind.endswith("_stream"):
        assert await started.read() == Empty()
    await handlers.entered.wait()
    started.cancel()
    await handlers.left.wait()
    assert await started.code() is grpc.StatusCode.CANCELLED
    assert not caplog.records


async def test_a_call_that_succeeds_is_left_alone(call):
    assert await call("unary_unary") == Empty()
    assert [each async for each in call("stream_stream")] == [Empty()]


async def test_the_worst_refusal_fits_in_the_trailers(call, handlers):
    noise = "é%" * 10_000
    handlers.error = InvalidField({f'task.headers["{number}{noise!a}"]': "x" * 5000 for number in range(64)})
    error = await end(call("unary_unary"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    trailers = dict(error.trailing_metadata())
    # gRPC writes the message percent-encoded, and what ends in -bin in base64.
    size = len(quote(error.details())) + sum(len(key) + len(value) * 4 // 3 for key, value in trailers.items())
    assert size < METADATA_MAX
    assert len(details(rpc_status.from_call(error))[BadRequest].field_violations) == VIOLATIONS_MAX


# --- statuses


def test_fields_at_fault_are_told_one_by_one():
    status = to_status(InvalidField({"a": "is bad", "b[1].c": "is worse"}))
    violations = details(status)[BadRequest].field_violations
    assert [(each.field, each.description) for each in violations] == [("a", "is bad"), ("b[1].c", "is worse")]
    assert status.message == "a: is bad; b[1].c: is worse"


@pytest.mark.parametrize("error", [ShuttingDown(), StoreUnavailable("the disk hangs")])
def test_who_finds_the_service_unavailable_is_told_when_to_come_again(error):
    assert details(to_status(error))[RetryInfo].retry_delay.seconds == 1


def test_who_is_refused_for_good_is_not_told_to_come_again():
    assert details(to_status(QueueNotFound("q"))).keys() == {ErrorInfo}


def test_a_long_message_is_cut_and_says_so():
    message = to_status(QueueNotFound("q" * 5000)).message
    assert len(message) == MESSAGE_MAX
    assert message.endswith("...")


def refusals(kind=ServiceError):
    return {each for sub in kind.__subclasses__() for each in ({sub} | refusals(sub))}


def test_every_refusal_names_a_status_and_a_reason_of_the_proto():
    reasons = set(error_reason_pb2.ErrorReason.keys())
    for refusal in refusals():
        assert refusal.code in grpc.StatusCode.__members__
        assert f"ERROR_REASON_{refusal.reason}" in reasons
