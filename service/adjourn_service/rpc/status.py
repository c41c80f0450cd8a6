"""What a refusal looks like on the wire: google.rpc.Status with its details."""

from typing import Final

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from adjourn_service.errors import InvalidField, ServiceError

DOMAIN: Final = "adjourn"


def status_code(error: ServiceError) -> grpc.StatusCode:
    """Return the gRPC code that the error names."""
    return grpc.StatusCode[error.code]


def to_status(error: ServiceError) -> Status:
    """Return the error as a Status with ErrorInfo, and with BadRequest if fields are at fault."""
    details: list[Message] = [ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if isinstance(error, InvalidField):
        violations = [
            BadRequest.FieldViolation(field=path, description=problem) for path, problem in error.violations.items()
        ]
        details.append(BadRequest(field_violations=violations))
    status = Status(code=status_code(error).value[0], message=error.message)
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status
