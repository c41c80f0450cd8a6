"""Whatever goes into a payload comes out; nothing else comes out of anything."""

from __future__ import annotations

import operator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from adjourn import errors
from adjourn.payload import SigningKeys, decode_call, decode_result, encode_call, encode_result, peek

KEYS = SigningKeys([("k1", b"1" * 16)])

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
keys = st.sampled_from([None, KEYS])


def collect(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    return args, kwargs


@given(st.lists(values).map(tuple), st.dictionaries(st.text(), values), keys)
def test_call_comes_out_as_it_went_in(args, kwargs, keys):
    encoded = encode_call(collect, args, kwargs, keys)
    call = decode_call(encoded.payload, keys)
    assert (call.function, call.args, call.kwargs) == (collect, args, kwargs)
    assert peek(encoded.payload).callable == encoded.callable
    assert peek(encoded.payload).key_id == ("k1" if keys else "")


@given(values, keys)
def test_result_comes_out_as_it_went_in(value, keys):
    assert decode_result(encode_result(value, keys), keys) == value


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_by_our_errors_only(data):
    for prefix in (b"", b"\xadjrn", b"\xadjrn\x01\x01\x01\x00\x00\x00"):
        for read in (peek, decode_call, decode_result):
            try:
                read(prefix + data)
            except errors.PayloadError:
                continue


@given(st.data())
def test_altered_signed_payload_is_refused(data):
    payload = encode_call(operator.add, (1, 2), {}, KEYS).payload
    other = data.draw(
        st.one_of(
            st.integers(0, len(payload) - 1).map(lambda n: payload[:n]),
            st.binary(min_size=1, max_size=8).map(lambda tail: payload + tail),
            st.tuples(st.integers(0, len(payload) - 1), st.integers(1, 255)).map(
                lambda change: payload[: change[0]] + bytes([payload[change[0]] ^ change[1]]) + payload[change[0] + 1 :]
            ),
        )
    )
    try:
        decode_call(other, KEYS)
    except (errors.PayloadFormatError, errors.PayloadSignatureError, errors.PayloadVersionError):
        return
    raise AssertionError(f"accepted {other!r}")
