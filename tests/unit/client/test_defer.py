"""defer, @task, batch and handles, as a caller uses them."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import inspect
import pickle
import uuid
from typing import Any

import pytest

import adjourn
from adjourn.aio import AsyncClient, default_async_client
from adjourn.context import TaskContext, enter_task, leave_task
from adjourn.errors import OptionError
from adjourn.payload import decode_call, encode_result, peek
from adjourn.signing import SigningKeys
from adjourn.v1 import task_pb2
from tests.unit.client import samples
from tests.unit.client.fake_service import status_of
from tests.unit.client.samples import Greeter, send_async, send_mail


def stored(service: Any, handle: Any) -> Any:
    return service.tasks[handle.name]


def run_stored(service: Any, handle: Any) -> Any:
    call = decode_call(stored(service, handle).payload)
    return call.function(*call.args, **call.kwargs)


@pytest.fixture
def mail(service):
    service.queues["queues/mail"] = service.queues["queues/default"]
    return service


# defer


def test_deferred_call_is_a_task_of_the_default_queue(service):
    handle = adjourn.defer(samples.add, 1, b=2)
    assert handle.queue == "default"
    assert handle.id == handle.uid
    assert uuid.UUID(handle.uid).version == 7
    assert handle.name == f"queues/default/tasks/{handle.uid}"
    task = stored(service, handle)
    assert task.callable == peek(task.payload).callable == "tests.unit.client.samples.add"
    assert run_stored(service, handle) == 3


def test_options_of_the_seed_form_reach_the_task(mail):
    handle = adjourn.defer(samples.add, 1, _countdown=60, _queue="mail", _name="welcome-42", _headers={"a": "b"})
    assert handle.name == "queues/mail/tasks/welcome-42"
    assert handle.id == "welcome-42"
    task = stored(mail, handle)
    assert (task.countdown.seconds, dict(task.headers)) == (60, {"a": "b"})


def test_arguments_may_have_any_name(service):
    handle = adjourn.defer(samples.takes_obj, obj=1, membername=2)
    assert run_stored(service, handle) == (1, 2)
    handle = adjourn.defer(samples.record, fn=1, self=2, function=3, options=4)
    assert run_stored(service, handle)[1] == {"fn": 1, "self": 2, "function": 3, "options": 4}


def test_name_that_is_taken_is_refused(service):
    adjourn.defer(samples.add, 1, _name="once")
    with pytest.raises(adjourn.TaskExists):
        adjourn.defer(samples.add, 1, _name="once")


def test_refused_call_sends_nothing(service):
    for call in (
        lambda: adjourn.defer(samples.module_lambda),
        lambda: adjourn.defer(samples.add, 1, _bogus=3),
        lambda: adjourn.defer(samples.add),
        lambda: send_mail.defer(),  # type: ignore[call-arg]
        lambda: send_mail.options(name="a b"),
    ):
        with pytest.raises(adjourn.NotDeferrableError):
            call()
    assert service.calls == []


def test_large_payload_is_refused_by_the_service(service):
    with pytest.raises(adjourn.PayloadTooLarge):
        adjourn.defer(samples.record, b"x" * 40_000)


def test_configured_queue_and_keys_are_used(mail):
    adjourn.configure(target=mail.target, queue="mail", signing_keys="k:" + "ab" * 16)
    handle = adjourn.defer(samples.add, 1)
    assert handle.queue == "mail"
    assert peek(stored(mail, handle).payload).key_id == "k"


async def test_adefer_makes_the_same_task(aservice):
    handle = await adjourn.adefer(samples.add, 1, b=2, _name="x")
    assert handle.name == "queues/default/tasks/x"
    assert run_stored(aservice, handle) == 3
    with pytest.raises(adjourn.TaskExists):
        await adjourn.adefer(samples.add, 1, _name="x")


# @task


def test_task_is_called_as_before_and_keeps_its_signature():
    assert send_mail(1, subject="abc") == 4
    assert send_mail.__name__ == "send_mail"
    assert send_mail.__doc__ == "Send a mail."
    assert str(inspect.signature(send_mail)) == "(user_id: 'int', subject: 'str' = 'hi') -> 'int'"


def test_task_defers_with_its_own_options(mail):
    handle = send_mail.defer(40, subject="ab")
    assert handle.queue == "mail"
    assert stored(mail, handle).retry_policy.max_attempts == 5
    assert stored(mail, handle).retain.seconds == 60
    assert run_stored(mail, handle) == 42


def test_options_of_a_call_go_over_those_of_the_task(mail):
    handle = send_mail.options(countdown=60, queue="default").defer(40)
    task = stored(mail, handle)
    assert (handle.queue, task.countdown.seconds, task.retain.seconds) == ("default", 60, 60)
    twice = send_mail.options(countdown=60).options(priority=3).defer(40)
    assert (stored(mail, twice).countdown.seconds, stored(mail, twice).priority) == (60, 3)


def test_unknown_option_of_a_task_is_refused():
    with pytest.raises(OptionError, match="no option 'cuntdown'; did you mean 'countdown'"):
        send_mail.options(cuntdown=1)  # type: ignore[call-arg]
    with pytest.raises(OptionError, match="no option 'que'"):
        adjourn.task(que="mail")  # type: ignore[call-overload]


def test_task_takes_arguments_with_an_underscore():
    assert adjourn.task(_underscored)(_x=5) == 5


def _underscored(_x: int) -> int:
    return _x


def test_task_pickles_and_copies_as_a_reference():
    assert pickle.loads(pickle.dumps(send_mail)) is send_mail
    assert copy.deepcopy(send_mail) is send_mail
    assert len(pickle.dumps(send_mail)) < 100


def test_methods_and_static_methods_may_be_tasks(service):
    assert Greeter("hi").task_method("you") == "hi you"
    assert Greeter.task_static("you") == "YOU"
    assert run_stored(service, Greeter("hi").task_method.defer("you")) == "hi you"
    assert run_stored(service, Greeter("hi").task_method.options(priority=1).defer("you")) == "hi you"
    assert run_stored(service, adjourn.defer(Greeter("hi").task_method, "you")) == "hi you"
    assert run_stored(service, Greeter.task_static.defer("you")) == "YOU"
    assert pickle.loads(pickle.dumps(Greeter("hi").task_method))("you") == "hi you"


def test_wrong_arguments_of_a_task_method_are_refused(service):
    with pytest.raises(adjourn.ArityError):
        Greeter().task_method.defer()  # type: ignore[call-arg]


async def test_coroutine_function_may_be_a_task(aservice):
    assert await send_async(5) == 5
    assert await run_stored(aservice, await send_async.adefer(5)) == 5
    assert await run_stored(aservice, send_async.defer(5)) == 5


@pytest.mark.parametrize("function", [samples.generate, samples.generate_async, 5, Greeter()])
def test_what_cannot_be_a_task_is_refused_at_the_decoration(function):
    with pytest.raises(adjourn.NotDeferrableError):
        adjourn.task(function)


def test_order_of_decorators_is_told():
    with pytest.raises(adjourn.NotCallableError, match="write @staticmethod above"):
        adjourn.task(staticmethod(samples.add))


# batch


def test_batch_is_one_request(mail):
    with adjourn.batch():
        handles = [adjourn.defer(samples.add, i) for i in range(500)] + [send_mail.defer(1)]
        assert mail.tasks == {}
    assert mail.batch_sizes == [501]
    assert [handle.name for handle in handles] == list(mail.tasks)


def test_large_batch_is_sent_in_full_requests(service):
    with adjourn.batch():
        for i in range(2500):
            adjourn.defer(samples.add, i)
    assert sorted(service.batch_sizes) == [500, 1000, 1000]
    assert len(service.tasks) == 2500


def test_empty_batch_sends_nothing(service):
    with adjourn.batch():
        pass
    assert service.calls == []


def test_exception_in_the_block_sends_nothing(service):
    def block() -> None:
        with adjourn.batch():
            adjourn.defer(samples.add, 1)
            raise KeyError

    with pytest.raises(KeyError):
        block()
    assert service.calls == []
    adjourn.defer(samples.add, 1)
    assert len(service.tasks) == 1


def test_exception_in_a_large_block_tells_what_was_sent(service):
    def block() -> None:
        with adjourn.batch():
            for i in range(1500):
                adjourn.defer(samples.add, i)
            raise KeyError

    with pytest.raises(KeyError) as failure:
        block()
    assert len(service.tasks) == 1000
    assert "first 1,000 tasks of the batch had been sent; the other 500 were dropped" in failure.value.__notes__[0]


def test_nested_batch_joins_the_outer(service):
    with adjourn.batch():
        with adjourn.batch():
            adjourn.defer(samples.add, 1)
        assert service.calls == []
        adjourn.defer(samples.add, 2)
    assert service.batch_sizes == [2]


def test_partly_refused_batch_says_which(service):
    def block() -> None:
        with adjourn.batch():
            for queue in ("default", "nowhere", "default", "nowhere"):
                adjourn.defer(samples.add, 1, _queue=queue)

    with pytest.raises(adjourn.BatchError, match=r"2 of the 4 tasks.*number 2: .*nowhere.*number 4: ") as failure:
        block()
    assert sorted(failure.value.failures) == [1, 3]
    assert all(isinstance(error, adjourn.QueueNotFound) for error in failure.value.failures.values())
    assert failure.value.created == len(service.tasks) == 2


def test_batch_that_cannot_be_sent_raises_what_went_wrong(service):
    service.faults.append(status_of("RESOURCE_EXHAUSTED", "disk full", "STORE_FULL"))
    with pytest.raises(adjourn.StoreFull), adjourn.batch():
        adjourn.defer(samples.add, 1)


def test_refused_call_in_a_batch_leaves_the_others(service):
    with adjourn.batch():
        adjourn.defer(samples.add, 1)
        with pytest.raises(adjourn.ArityError):
            adjourn.defer(samples.add)
    assert service.batch_sizes == [1]


def test_context_that_outlives_its_batch_defers_by_itself(service):
    with adjourn.batch():
        context = contextvars.copy_context()
    context.run(adjourn.defer, samples.add, 1)
    assert len(service.tasks) == 1


def test_batch_object_may_be_used_again(service):
    batch = adjourn.batch()
    for _ in range(2):
        with batch:
            adjourn.defer(samples.add, 1)
    assert service.batch_sizes == [1, 1]


async def test_async_batch_is_one_request(aservice):
    async def block_that_raises() -> None:
        async with adjourn.batch():
            await adjourn.adefer(samples.add, 1)
            raise KeyError

    async with adjourn.batch():
        await asyncio.gather(*[adjourn.adefer(samples.add, i) for i in range(20)])
        adjourn.defer(samples.add, 20)
        assert aservice.tasks == {}
    assert aservice.batch_sizes == [21]
    with pytest.raises(adjourn.BatchError):
        async with adjourn.batch():
            await adjourn.adefer(samples.add, 1, _queue="nowhere")
    with pytest.raises(KeyError):
        await block_that_raises()
    assert len(aservice.tasks) == 21


# asyncio


async def test_concurrent_coroutines_are_merged(aservice):
    handles = await asyncio.gather(*[adjourn.adefer(samples.add, i) for i in range(300)])
    assert {handle.name for handle in handles} == set(aservice.tasks)
    assert len(aservice.batch_sizes) <= 3


async def test_merged_coroutines_get_their_own_errors(aservice):
    queues = ["default", "nowhere"] * 5
    answers = await asyncio.gather(
        *[adjourn.adefer(samples.add, i, _queue=queue) for i, queue in enumerate(queues)], return_exceptions=True
    )
    assert [isinstance(answer, adjourn.QueueNotFound) for answer in answers] == [False, True] * 5


async def test_cancelled_coroutine_does_not_take_the_others_down(aservice):
    aservice.open_gate.clear()
    cancelled = asyncio.create_task(adjourn.adefer(samples.add, 1))
    others = [asyncio.create_task(adjourn.adefer(samples.add, i)) for i in range(5)]
    await asyncio.to_thread(aservice.arrived.acquire)
    cancelled.cancel()
    aservice.open_gate.set()
    assert len(await asyncio.gather(*others)) == 5
    with pytest.raises(asyncio.CancelledError):
        await cancelled


async def test_cancelled_coroutine_that_was_not_sent_is_never_sent(aservice):
    aservice.open_gate.clear()
    on_their_way = []
    for _ in range(2):
        on_their_way.append(asyncio.create_task(adjourn.adefer(samples.add, 1)))
        await asyncio.to_thread(aservice.arrived.acquire)
    waiting = asyncio.create_task(adjourn.adefer(samples.add, 1))
    await asyncio.wait([waiting], timeout=0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    aservice.open_gate.set()
    await asyncio.gather(*on_their_way)
    await adjourn.adefer(samples.add, 1)
    assert sum(aservice.batch_sizes) == len(aservice.tasks) == 3


async def test_merged_coroutines_fail_each_with_an_error_of_its_own(aservice):
    aservice.faults.append(status_of("RESOURCE_EXHAUSTED", "disk full", "STORE_FULL"))
    answers = await asyncio.gather(*[adjourn.adefer(samples.add, i) for i in range(3)], return_exceptions=True)
    assert all(isinstance(answer, adjourn.StoreFull) for answer in answers)
    assert len({id(answer) for answer in answers}) == 3
    assert await default_async_client().create_tasks([]) == {}


async def test_unavailable_service_is_retried_in_asyncio(aservice):
    aservice.faults += [status_of("UNAVAILABLE", "moving")] * 2
    await adjourn.adefer(samples.add, 1)
    assert aservice.calls == ["BatchCreate"] * 3


async def test_service_that_is_down_gives_a_clear_error_in_asyncio():
    async with AsyncClient("127.0.0.1:1", adjourn.ClientConfig(timeout=0.3)) as client:
        with pytest.raises(adjourn.ServiceUnavailable, match=r"127\.0\.0\.1:1.*adjourn serve"):
            await client.get_task("default/tasks/x")


def test_each_event_loop_has_its_own_client(service):
    async def use() -> AsyncClient:
        await adjourn.adefer(samples.add, 1)
        client = default_async_client()
        assert default_async_client() is client
        await client.close()
        return client

    assert asyncio.run(use()) is not asyncio.run(use())
    assert len(service.tasks) == 2


async def test_async_client_has_every_method_of_the_client(aservice):
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(adjourn.Client) - {"start"} == public(adjourn.AsyncClient)
    client = default_async_client()
    handle = await adjourn.adefer(samples.add, 1)
    assert [task.name async for task in client.list_tasks("default")] == [handle.name]
    assert [queue.name async for queue in client.list_queues()] == ["queues/default"]
    assert (await client.get_task(handle.name)).uid == handle.uid
    assert await client.purge_queue("default") == 1


# handles


@pytest.fixture
def handle(service):
    return adjourn.defer(samples.add, 1, _retain=60)


def end(service: Any, handle: Any, state: Any, **status: Any) -> None:
    task = stored(service, handle)
    task.status.MergeFrom(task_pb2.TaskStatus(state=state, **status))
    task.status.state = state


def test_handle_gives_the_result(service, handle):
    end(service, handle, task_pb2.TASK_STATE_SUCCEEDED, result=encode_result({"a": 1}))
    assert handle.result(5) == {"a": 1}
    assert handle.wait().status.state == task_pb2.TASK_STATE_SUCCEEDED


async def test_handle_gives_the_result_in_asyncio(aservice, handle):
    assert (await handle.aget()).name == handle.name
    end(aservice, handle, task_pb2.TASK_STATE_SUCCEEDED, result=encode_result([1]))
    assert await handle.aresult(5) == [1]


def test_result_is_checked_against_the_keys(service):
    adjourn.configure(target=service.target, signing_keys="k:" + "ab" * 16)
    handle = adjourn.defer(samples.add, 1)
    end(service, handle, task_pb2.TASK_STATE_SUCCEEDED, result=encode_result(1))
    with pytest.raises(adjourn.PayloadSignatureError):
        handle.result()
    keys = SigningKeys.parse("k:" + "ab" * 16)
    stored(service, handle).status.result = encode_result(2, keys)
    assert handle.result() == 2


def test_result_of_a_task_that_was_not_retained_says_what_to_do(service, handle):
    end(service, handle, task_pb2.TASK_STATE_SUCCEEDED)
    with pytest.raises(adjourn.ResultNotRetained, match="_retain"):
        handle.result()
    del service.tasks[handle.name]
    with pytest.raises(adjourn.ResultNotRetained, match="_retain"):
        handle.result()
    with pytest.raises(adjourn.TaskNotFound):
        handle.wait()


def test_result_of_a_failed_task_raises_the_remote_error(service, handle):
    error = task_pb2.TaskError(type="shop.Broken", message="no stock", traceback="Traceback ...")
    attempt = task_pb2.Attempt(number=3, error=error)
    end(service, handle, task_pb2.TASK_STATE_DEAD, attempt_count=3, attempts=[attempt])
    with pytest.raises(adjourn.TaskFailed, match="failed for good in attempt 3: shop") as failure:
        handle.result()
    assert failure.value.remote_type == "shop.Broken"
    assert failure.value.remote_traceback == "Traceback ..."


def test_result_of_a_cancelled_task_raises(service, handle):
    handle.cancel()
    with pytest.raises(adjourn.TaskCancelled):
        handle.result()


def test_task_that_has_not_ended_times_out(service, handle):
    with pytest.raises(adjourn.WaitTimeout, match="has not ended within 0 s") as failure:
        handle.result(0)
    assert isinstance(failure.value, TimeoutError)


def test_handle_can_be_made_from_a_name_and_pickled(service, handle):
    again = pickle.loads(pickle.dumps(handle))
    assert again == handle == adjourn.TaskHandle(handle.name) == adjourn.TaskHandle(f"default/tasks/{handle.id}")
    assert len({again, handle}) == 1
    assert again.get().name == handle.name
    with pytest.raises(OptionError):
        adjourn.TaskHandle("nonsense")


# context


def test_current_task_is_what_the_worker_set():
    assert adjourn.current_task() is None
    context = TaskContext(name="queues/mail/tasks/x", queue="mail", attempt=2)
    token = enter_task(context)
    assert adjourn.current_task() is context
    leave_task(token)
    assert adjourn.current_task() is None


# exports


def test_exports_are_sorted_and_exist():
    from adjourn import deferred

    for module in (adjourn, deferred):
        assert list(module.__all__) == sorted(module.__all__)
        assert all(getattr(module, name) is not None for name in module.__all__)
    assert set(adjourn.__all__) <= set(dir(adjourn))


def test_every_error_is_exported():
    from adjourn import errors

    declared = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert declared <= set(adjourn.__all__)
    drawn = set((errors.__doc__ or "").split())
    assert declared <= drawn


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        adjourn.nonsense  # noqa: B018
