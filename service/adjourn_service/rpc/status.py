"""What a refusal looks like on the wire: google.rpc.Status with its details."""

from collections.abc import Iterator
from itertools import islice
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from adjourn_service.errors import InvalidField, ServiceError

DOMAIN: Final = "adjourn"

RETRY_SECONDS: Final = 1
"""What a caller is told to wait when the service cannot serve just now: a restart, or a disk that hangs, takes that."""

MESSAGE_MAX: Final = 800
VIOLATIONS_MAX: Final = 10
VIOLATION_MAX: Final = 150
"""A status travels in the trailers, of which gRPC takes 8 KiB: a longer one reaches the caller as RESOURCE_EXHAUSTED,
without a word of what was wrong. The message is in it twice, once in base64, and so are the characters of each field
and description, which are ASCII (see `validation`)."""


def status_code(error: ServiceError) -> grpc.StatusCode:
    """Return the gRPC code that the error names."""
    return grpc.StatusCode[error.code]


def to_status(error: ServiceError) -> Status:
    """Return the error as a Status with ErrorInfo, and with BadRequest or RetryInfo where they say more."""
    status = Status(code=status_code(error).value[0], message=_cut(error.message, MESSAGE_MAX))
    for detail in _details(error):
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _details(error: ServiceError) -> Iterator[Message]:
    yield ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    if isinstance(error, InvalidField):
        yield BadRequest(
            field_violations=[
                BadRequest.FieldViolation(field=_cut(path, VIOLATION_MAX), description=_cut(problem, VIOLATION_MAX))
                for path, problem in islice(error.violations.items(), VIOLATIONS_MAX)
            ]
        )
    if status_code(error) is grpc.StatusCode.UNAVAILABLE:
        retry = RetryInfo()
        retry.retry_delay.seconds = RETRY_SECONDS
        yield retry


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."
