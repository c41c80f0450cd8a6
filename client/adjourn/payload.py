"""Calls and results as bytes. The service never opens them; a worker checks their signature before it unpickles.

Version 1, integers big-endian:

    offset   size  field
    0        4     magic: AD 6A 72 6E
    4        1     version: 1
    5        1     kind: 1 a call, 2 a result
    6        1     codec: 1 pickle, protocol 5
    7        1     K, length of the key id; 0: not signed
    8        2     C, length of the callable's name
    10       K     key id, ASCII
    10+K     C     dotted name of the callable, UTF-8, for people and filters; never used to find it; empty in a result
    10+K+C   S     HMAC-SHA-256 under the named key over all other bytes, in their order; S = 32 if K > 0, else 0
    then     rest  data: the pickle of `(callable, args, kwargs)`, or of the result

The kind is signed with the rest, so a task cannot have a result of its choice run as a call. A signature does not tie
a payload to its task: who can write to the store can run a signed call again, but not make one.

Nothing here needs protobuf or gRPC, so the children of a worker start without them."""

from __future__ import annotations

import functools
import importlib
import io
import pickle
import struct
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from adjourn.callables import (
    MAIN_MODULES,
    BoundReference,
    ByReference,
    curry,
    facts_of,
    invoke_member,
    main_reference,
    raise_unpicklable,
    returns_coroutine,
)
from adjourn.errors import (
    CallableNotFound,
    PayloadFormatError,
    PayloadSignatureError,
    PayloadUnpickleError,
    PayloadVersionError,
    UnpicklableResultError,
)
from adjourn.signing import SIGNATURE_BYTES, SigningKeys

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Call",
    "EncodedCall",
    "Envelope",
    "SigningKeys",
    "decode_call",
    "decode_result",
    "encode_call",
    "encode_result",
    "invoke_member",
    "peek",
    "returns_coroutine",
]

MAGIC: Final = b"\xadjrn"
VERSION: Final = 1
KIND_CALL: Final = 1
KIND_RESULT: Final = 2
CODEC_PICKLE: Final = 1

# Named and not HIGHEST_PROTOCOL: a newer Python must not write what an older one cannot read.
PICKLE_PROTOCOL: Final = 5

_HEAD: Final = struct.Struct(">4sBBBBH")


class EncodedCall(NamedTuple):
    """A call ready to be sent: the dotted name of what is called, and the payload."""

    callable: str
    payload: bytes


class Envelope(NamedTuple):
    """What a payload says in clear. `key_id` is empty if it is not signed."""

    version: int
    codec: int
    callable: str
    key_id: str
    kind: int


class Call(NamedTuple):
    """A decoded call; run it as `function(*args, **kwargs)`."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def encode_call(
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    keys: SigningKeys | None = None,
    *,
    main: str | None = None,
) -> EncodedCall:
    """Turn a call into bytes, signed if there are keys. `main` is the script that workers run as their `__main__`.

    Raises: NotDeferrableError, in the form that fits, for everything that is known now to fail in a worker."""
    if isinstance(function, BoundReference):
        function = function.method
    facts = facts_of(function)
    facts.check_arguments(args, kwargs)
    curried, curried_args = curry(function, args)
    try:
        data = pickle.dumps((curried, curried_args, kwargs), PICKLE_PROTOCOL)
        # One search for the rare case is cheaper than a Python hook in every pickle. "__mp_main__" matches too.
        if b"_main__" in data:
            data = _dumps_with_main((curried, curried_args, kwargs), main)
    except Exception as error:  # noqa: BLE001  -- anything may be raised by the reduce methods of users' classes.
        raise_unpicklable(function, args, kwargs, facts, error)
    return EncodedCall(facts.name, _seal(KIND_CALL, facts.name_utf8, data, keys))


def decode_call(payload: bytes, keys: SigningKeys | None = None) -> Call:
    """Turn bytes back into a call. With keys, its signature is checked before anything is unpickled.

    Raises: PayloadFormatError, PayloadVersionError, PayloadSignatureError, CallableNotFound, PayloadUnpickleError."""
    value = _loads(_open(payload, KIND_CALL, keys))
    match value:
        case (function, tuple(args), dict(kwargs)) if callable(function):
            return Call(function, args, kwargs)
    raise PayloadFormatError("payload holds no call: it is not a callable with its arguments")


def encode_result(value: Any, keys: SigningKeys | None = None) -> bytes:
    """Turn what a task returned into bytes, signed if there are keys.

    Raises: UnpicklableResultError."""
    try:
        data = pickle.dumps(value, PICKLE_PROTOCOL)
    except Exception as error:
        raise UnpicklableResultError(
            f"the task returned a {type(value).__qualname__} that cannot be pickled ({error}), so it cannot be retained"
        ) from error
    return _seal(KIND_RESULT, b"", data, keys)


def decode_result(payload: bytes, keys: SigningKeys | None = None) -> Any:
    """Turn bytes back into what a task returned.

    Raises: as `decode_call`."""
    return _loads(_open(payload, KIND_RESULT, keys))


def peek(payload: bytes) -> Envelope:
    """Read what a payload says in clear. Nothing is unpickled and no signature is checked.

    Raises: PayloadFormatError, PayloadVersionError."""
    return _parse(payload)[0]


def find_attribute(module: str, qualname: str) -> Any:
    """Import `module` and follow `qualname`. Code of a `__main__` travels as a call of this, so its own name is part of
    the format.

    Raises: CallableNotFound."""
    try:
        return functools.reduce(getattr, qualname.split("."), importlib.import_module(module))
    except Exception as error:
        raise _not_found(module, qualname, error) from error


def _seal(kind: int, name: bytes, data: bytes, keys: SigningKeys | None) -> bytes:
    if keys is None:
        return _HEAD.pack(MAGIC, VERSION, kind, CODEC_PICKLE, 0, len(name)) + name + data
    key_id = keys.signing_id.encode("ascii")
    head = _HEAD.pack(MAGIC, VERSION, kind, CODEC_PICKLE, len(key_id), len(name)) + key_id + name
    return head + keys.sign(head + data) + data


def _parse(payload: bytes) -> tuple[Envelope, int]:
    """The envelope, and the offset at which its head ends: there the signature begins, or the data."""
    if payload[: len(MAGIC)] != MAGIC:
        raise PayloadFormatError("payload is not one of adjourn's: it begins with other bytes")
    if len(payload) < _HEAD.size:
        raise PayloadFormatError(f"payload is cut off after {len(payload)} bytes")
    _, version, kind, codec, key_length, name_length = _HEAD.unpack_from(payload)
    if version > VERSION:
        raise PayloadVersionError(f"payload has format {version}, and this adjourn reads {VERSION}; update the worker")
    key_end = _HEAD.size + key_length
    end = key_end + name_length
    if len(payload) < end + (SIGNATURE_BYTES if key_length else 0):
        raise PayloadFormatError(f"payload is cut off after {len(payload)} bytes")
    try:
        key_id = payload[_HEAD.size : key_end].decode("ascii")
        name = payload[key_end:end].decode("utf-8")
    except UnicodeDecodeError as error:
        raise PayloadFormatError("payload is damaged: its head is no text") from error
    if version < 1 or kind not in (KIND_CALL, KIND_RESULT) or codec != CODEC_PICKLE:
        raise PayloadFormatError(f"payload is damaged: version {version}, kind {kind}, codec {codec}")
    return Envelope(version, codec, name, key_id, kind), end


def _open(payload: bytes, kind: int, keys: SigningKeys | None) -> bytes:
    """The data of a payload, verified."""
    envelope, end = _parse(payload)
    data = payload[end + SIGNATURE_BYTES :] if envelope.key_id else payload[end:]
    if keys is not None:
        if not envelope.key_id:
            raise PayloadSignatureError(
                "payload is not signed, and only signed ones run here; set ADJOURN_SIGNING_KEYS where it is deferred"
            )
        keys.verify(envelope.key_id, payload[:end] + data, payload[end : end + SIGNATURE_BYTES])
    if envelope.kind != kind:
        raise PayloadFormatError(
            "payload is a result, not a call" if kind == KIND_CALL else "payload is a call, not a result"
        )
    return data


class _Unpickler(pickle.Unpickler):
    """Tells code that is missing here from everything else that can go wrong."""

    def find_class(self, module: str, name: str, /) -> Any:
        try:
            return super().find_class(module, name)
        except Exception as error:
            raise _not_found(module, name, error) from error


def _loads(data: bytes) -> Any:
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except CallableNotFound:
        raise
    except (pickle.UnpicklingError, EOFError) as error:
        raise PayloadFormatError(f"payload is damaged: {error}") from error
    except Exception as error:
        raise PayloadUnpickleError(
            f"an object in the payload cannot be restored: {type(error).__name__}: {error}"
        ) from error


def _not_found(module: str, name: str, error: Exception) -> CallableNotFound:
    if isinstance(error, CallableNotFound):
        return error
    return CallableNotFound(
        f"cannot find {module}.{name} here ({type(error).__name__}: {error}); "
        "does this worker run the code that deferred it?"
    )


class _MainPickler(pickle.Pickler):
    """Writes code of `__main__` under the name by which workers know it."""

    def __init__(self, file: io.BytesIO, main: str | None) -> None:
        super().__init__(file, PICKLE_PROTOCOL)
        self._main = main

    def reducer_override(self, obj: Any, /) -> Any:
        if isinstance(obj, (FunctionType, type, ByReference)) and obj.__module__ in MAIN_MODULES:
            return find_attribute, main_reference(obj, self._main)
        return NotImplemented


def _dumps_with_main(value: Any, main: str | None) -> bytes:
    file = io.BytesIO()
    _MainPickler(file, main).dump(value)
    return file.getvalue()
