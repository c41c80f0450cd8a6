"""The six kinds of callables travel; what would fail later is refused; nothing unsigned is unpickled."""

from __future__ import annotations

import datetime as dt
import functools
import operator
import pickle
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from adjourn import errors
from adjourn.payload import (
    SigningKeys,
    decode_call,
    decode_result,
    encode_call,
    encode_result,
    peek,
    returns_coroutine,
)
from tests.unit.client import samples
from tests.unit.client.samples import Greeter

if TYPE_CHECKING:
    from pathlib import Path

KEYS = SigningKeys([("new", b"n" * 32), ("old", b"o" * 32)])
OLD_KEYS = SigningKeys([("old", b"o" * 32)])
NOW = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)


def carry(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Encode a call, decode it and run it, as a worker would."""
    call = decode_call(encode_call(function, args, kwargs, KEYS).payload, KEYS)
    return call.function(*call.args, **call.kwargs)


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "result", "name"),
    [
        (samples.add, (1,), {"b": 2}, 3, "tests.unit.client.samples.add"),
        (samples.takes_obj, (), {"obj": 1, "membername": 2}, (1, 2), "tests.unit.client.samples.takes_obj"),
        (samples.cached, (4,), {}, 8, "tests.unit.client.samples.cached"),
        (samples.wrapped, (4,), {}, 4, "tests.unit.client.samples.wrapped"),
        (Greeter("hi").greet, ("you",), {"membername": "!"}, "hi you!", "tests.unit.client.samples.Greeter.greet"),
        (Greeter("hi"), ("you",), {}, "hi, you", "tests.unit.client.samples.Greeter.__call__"),
        (Greeter("hi").secret(), ("you",), {}, "psst you", "tests.unit.client.samples.Greeter._Greeter__secret"),
        (Greeter("hi").renamed, ("you",), {}, "hi... you", "tests.unit.client.samples.Greeter.renamed"),
        (Greeter.shout, ("you",), {}, "YOU", "tests.unit.client.samples.Greeter.shout"),
        (Greeter.greet, (Greeter("hi"), "you"), {}, "hi you", "tests.unit.client.samples.Greeter.greet"),
        (Greeter.Nested().value, (), {}, 42, "tests.unit.client.samples.Greeter.Nested.value"),
        (Greeter.Nested.static, (), {}, 43, "tests.unit.client.samples.Greeter.Nested.static"),
        (functools.partial(samples.add, b=5), (1,), {}, 6, "tests.unit.client.samples.add"),
        (samples.send_mail, (1,), {"subject": "abc"}, 4, "tests.unit.client.samples.send_mail"),
        (Greeter("hi").task_method, ("you",), {}, "hi you", "tests.unit.client.samples.Greeter.task_method"),
        (Greeter.task_static, ("you",), {}, "YOU", "tests.unit.client.samples.Greeter.task_static"),
        (operator.add, (1, 2), {}, 3, "_operator.add"),
        (len, ("abc",), {}, 3, "builtins.len"),
        (NOW.isoformat, (), {}, NOW.isoformat(), "datetime.datetime.isoformat"),
        ([].__len__, (), {}, 0, "builtins.list.__len__"),
        ([3, 1].count, (3,), {}, 1, "builtins.list.count"),
        (dict.fromkeys, ("ab",), {}, {"a": None, "b": None}, "builtins.dict.fromkeys"),
        (str.upper, ("a",), {}, "A", "builtins.str.upper"),
        ((1).__add__, (2,), {}, 3, "builtins.int.__add__"),
    ],
)
def test_callable_runs_with_its_arguments_under_its_name(function, args, kwargs, result, name):
    assert carry(function, *args, **kwargs) == result
    encoded = encode_call(function, args, kwargs)
    assert encoded.callable == name
    assert peek(encoded.payload).callable == name


def test_class_is_constructed():
    assert carry(Greeter, "hey").greeting == "hey"
    assert carry(Greeter.make, "hey").greeting == "hey"
    assert isinstance(carry(Greeter.Nested), Greeter.Nested)


async def test_coroutine_function_gives_the_worker_a_coroutine_to_await():
    assert await carry(samples.add_async, 1, b=2) == 3
    assert await carry(samples.send_async, 5) == 5


def test_worker_can_tell_what_must_be_awaited():
    awaited = [samples.add_async, samples.send_async, functools.partial(samples.add_async, 1), samples.AsyncCallable()]
    assert all(returns_coroutine(function) for function in awaited)
    assert not any(returns_coroutine(f) for f in (samples.add, Greeter, Greeter().greet, len, samples.send_mail))


@pytest.mark.parametrize(
    ("function", "kinds", "words"),
    [
        (42, (ValueError, errors.NotCallableError), "must be callable"),
        (samples.module_lambda, (pickle.PicklingError, AttributeError), "lambda"),
        (samples.make_lambda(), (pickle.PicklingError, AttributeError), "lambda"),
        (samples.make_closure(), (pickle.PicklingError, AttributeError), "top level of its module"),
        (samples.make_local_class(), (pickle.PicklingError, AttributeError), "top level of its module"),
        (samples.make_local_class()().method, (pickle.PicklingError, AttributeError), "it is bound to"),
        (functools.partial(samples.make_lambda()), (pickle.PicklingError,), "lambda"),
        (samples.impostor, (pickle.PicklingError,), "is not this object"),
        (samples.Ephemeral().method, (pickle.PicklingError,), "not an attribute"),
        (samples.generate, (TypeError, errors.GeneratorFunctionError), "generator"),
        (samples.generate_async, (TypeError, errors.GeneratorFunctionError), "generator"),
        (functools.partial(samples.generate, 1), (errors.GeneratorFunctionError,), "generator"),
    ],
)
def test_what_no_worker_could_call_is_refused_at_the_call(function, kinds, words):
    with pytest.raises(errors.NotDeferrableError, match=words) as refusal:
        encode_call(function, (), {})
    assert isinstance(refusal.value, kinds)


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (samples.add, (), {}),
        (samples.add, (1, 2, 3), {}),
        (samples.add, (1,), {"c": 1}),
        (samples.add, (1,), {"a": 1}),
        (samples.send_mail, (), {}),
        (Greeter("hi").greet, (), {}),
        (Greeter.shout, (), {}),
        (Greeter, (1, 2), {}),
        (Greeter("hi"), (), {}),
        (functools.partial(samples.add, 1, 2), (3,), {}),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(function, args, kwargs):
    for _ in range(2):
        with pytest.raises(errors.ArityError, match="does not take these arguments") as refusal:
            encode_call(function, args, kwargs)
        assert isinstance(refusal.value, TypeError)


def test_builtin_without_a_signature_is_let_through():
    assert carry(dict, a=1) == {"a": 1}
    assert carry(min, 2, 1) == 1


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((threading.Lock(),), {}, r"argument 1 \(a\)"),
        ((1,), {"b": threading.Lock()}, "argument 'b'"),
        ((samples.make_lambda(),), {}, r"argument 1 \(a\)"),
    ],
)
def test_unpicklable_argument_is_named(args, kwargs, words):
    with pytest.raises(errors.UnpicklableArgumentError, match=words) as refusal:
        encode_call(samples.add, args, kwargs)
    assert isinstance(refusal.value, TypeError)
    assert isinstance(refusal.value, pickle.PicklingError)
    assert refusal.value.__cause__ is not None


def test_unpicklable_argument_of_a_method_is_counted_without_self():
    with pytest.raises(errors.UnpicklableArgumentError, match=r"argument 1 \(name\)"):
        encode_call(Greeter().greet, (threading.Lock(),), {})


def test_layout_of_a_call_is_as_documented():
    payload = encode_call(operator.add, (1, 2), {}).payload
    assert payload[:10] == bytes.fromhex("ad6a726e 01 01 01 00 000d")
    assert payload[10:23] == b"_operator.add"
    assert pickle.loads(payload[23:]) == (operator.add, (1, 2), {})


def test_layout_of_a_signed_call_is_as_documented():
    payload = encode_call(operator.add, (1, 2), {}, KEYS).payload
    assert payload[:10] == bytes.fromhex("ad6a726e 01 01 01 03 000d")
    assert payload[10:13] == b"new"
    assert payload[13:26] == b"_operator.add"
    assert pickle.loads(payload[58:]) == (operator.add, (1, 2), {})
    assert peek(payload).key_id == "new"


# Written by the release that made format 1: every later one must read them.
GOLDEN_CALL = bytes.fromhex(
    "ad6a726e01010100000d5f6f70657261746f722e6164648005951f000000000000008c095f6f70657261746f72948c036164649493944b01"
    "4b0286947d9487942e"
)
GOLDEN_SIGNED_RESULT = bytes.fromhex(
    "ad6a726e0102010300006e6577b02622f0823b0f0d04fa26cb0200f72155bcc0dad9c85008d5ef3228b1adb72d8005950b00000000000000"
    "5d94284b018c016194652e"
)


def test_payload_of_an_earlier_release_is_read():
    call = decode_call(GOLDEN_CALL)
    assert call.function(*call.args, **call.kwargs) == 3
    assert decode_result(GOLDEN_SIGNED_RESULT, KEYS) == [1, "a"]


def test_results_travel_signed():
    assert decode_result(encode_result({"a": [1]}, KEYS), KEYS) == {"a": [1]}
    with pytest.raises(errors.PayloadSignatureError):
        decode_result(encode_result(1), KEYS)
    with pytest.raises(errors.UnpicklableResultError, match="cannot be pickled"):
        encode_result(threading.Lock())


def test_result_is_not_run_as_a_call():
    with pytest.raises(errors.PayloadFormatError, match="is a result"):
        decode_call(encode_result((samples.add, (1,), {}), KEYS), KEYS)
    with pytest.raises(errors.PayloadFormatError, match="is a call"):
        decode_result(encode_call(samples.add, (1,), {}).payload)


def test_signature_of_an_old_key_is_accepted_while_it_is_listed():
    payload = encode_call(samples.add, (1,), {}, OLD_KEYS).payload
    assert decode_call(payload, KEYS).args == (1,)
    with pytest.raises(errors.PayloadSignatureError, match="'new'"):
        decode_call(encode_call(samples.add, (1,), {}, KEYS).payload, OLD_KEYS)


def test_unsigned_payload_is_refused_before_unpickling_where_keys_are_set():
    payload = encode_call(samples.Unrestorable, (), {}).payload
    with pytest.raises(errors.PayloadSignatureError, match="ADJOURN_SIGNING_KEYS"):
        decode_call(payload, KEYS)


def test_signed_payload_is_read_without_keys():
    assert decode_call(encode_call(samples.add, (1,), {}, KEYS).payload).args == (1,)


def test_any_flipped_byte_of_a_signed_payload_is_refused():
    payload = encode_call(samples.add, (1, 2), {}, KEYS).payload
    for position in range(len(payload)):
        for bit in (0x01, 0x80):
            altered = bytearray(payload)
            altered[position] ^= bit
            with pytest.raises((errors.PayloadFormatError, errors.PayloadSignatureError, errors.PayloadVersionError)):
                decode_call(bytes(altered), KEYS)


@pytest.mark.parametrize("length", [0, 1, 4, 9, 10, 20, 40])
def test_cut_off_payload_is_told_from_missing_code(length):
    payload = encode_call(samples.add, (1, 2), {}).payload
    with pytest.raises(errors.PayloadFormatError):
        decode_call(payload[:length])


@pytest.mark.parametrize("garbage", [b"", b"garbage", pickle.dumps((len, ("a",), {})), b"\x80\x05."])
def test_garbage_is_no_payload(garbage):
    with pytest.raises(errors.PayloadFormatError):
        decode_call(garbage)


def test_envelope_around_something_else_than_a_call_is_refused():
    head = encode_call(len, ("a",), {}).payload[:22]
    values: tuple[Any, ...] = (1, (len,), (1, (), {}), (len, [], {}), (len, (), []))
    for value in values:
        with pytest.raises(errors.PayloadFormatError, match="no call"):
            decode_call(head + pickle.dumps(value))


def test_newer_format_asks_for_a_newer_worker():
    payload = bytearray(encode_call(samples.add, (1,), {}).payload)
    payload[4] = 2
    with pytest.raises(errors.PayloadVersionError, match="update the worker"):
        peek(bytes(payload))


@pytest.mark.parametrize("name", [b"samples", b"add"])
def test_code_that_is_gone_is_told_from_a_damaged_payload(name):
    payload = encode_call(samples.add, (1,), {}).payload
    head, data = payload[:39], payload[39:]
    with pytest.raises(errors.CallableNotFound, match="does this worker run the code"):
        decode_call(head + data.replace(name, b"x" * len(name)))


def test_object_that_cannot_be_restored_is_told_with_its_cause():
    payload = encode_call(samples.add, (samples.Unrestorable(),), {}).payload
    with pytest.raises(errors.PayloadUnpickleError, match="RuntimeError: boom") as failure:
        decode_call(payload)
    assert isinstance(failure.value.__cause__, RuntimeError)


# __main__

SCRIPT = """
import sys
from adjourn import errors
from adjourn.payload import encode_call, decode_call
class Thing:
    pass
def f(x=None):
    return 'ran'
def main(main=None):
    try:
        for args in ((), (Thing(),)):
            encoded = encode_call(f, args, {}, main=main)
            call = decode_call(encoded.payload)
            print(encoded.callable, call.function.__module__, call.function(*call.args))
        encode_call(len, (Thing,), {}, main=main)
    except errors.MainModuleError as error:
        print('refused', error)
if __name__ == '__main__':
    main(*sys.argv[1:])
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "thescript.py"
    path.write_text(SCRIPT)
    return path


def run_python(*arguments, cwd) -> list[str]:
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_function_of_a_script_is_refused(script):
    (line,) = run_python(script, cwd=script.parent)
    assert line.startswith("refused cannot defer __main__.f")
    assert "ADJOURN_MAIN" in line


def test_function_of_the_script_that_workers_run_is_allowed(script):
    assert run_python(script, "thescript.py", cwd=script.parent) == ["__main__.f __main__ ran"] * 2


def test_function_of_another_script_than_workers_run_is_refused(script):
    (line,) = run_python(script, "other.py", cwd=script.parent)
    assert "another file" in line


def test_function_of_a_module_run_with_dash_m_travels_under_its_real_name(script):
    assert run_python("-m", "thescript", cwd=script.parent) == ["thescript.f thescript ran"] * 2


def test_class_of_a_script_is_refused_as_an_argument(script):
    source = script.read_text().replace("for args in ((), (Thing(),))", "for args in ()")
    script.write_text(source)
    (line,) = run_python(script, cwd=script.parent)
    assert line.startswith("refused cannot defer __main__.Thing")
