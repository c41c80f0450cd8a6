"""One interceptor turns what handlers raise into statuses, for all services and kinds of call."""

import inspect
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeAlias

import grpc
from grpc_status import rpc_status

from adjourn_service.errors import ServiceError
from adjourn_service.rpc.status import to_status

log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class InternalError(ServiceError):
    """A bug of ours. The log has the trace under `error_id`."""

    def __init__(self, error_id: str) -> None:
        super().__init__(f"internal error {error_id}; the service's log has its trace", error_id=error_id)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Answers refusals with google.rpc.Status, and bugs with INTERNAL and an id under which the trace is logged."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a call; see grpc.aio.ServerInterceptor."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        if handler.response_streaming:
            wrapped = _streaming(handler.stream_stream or handler.unary_stream, method)
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else (grpc.unary_stream_rpc_method_handler)
            )
        else:
            wrapped = _unary(handler.stream_unary or handler.unary_unary, method)
            make = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else (grpc.unary_unary_rpc_method_handler)
            )
        return make(
            wrapped,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _unary(handle: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: Context) -> Any:
        try:
            return await handle(request, context)
        except (grpc.aio.AbortError, grpc.RpcError):
            raise
        except Exception as error:  # noqa: BLE001
            await _abort(context, error, method)

    return call


def _streaming(handle: Callable[..., Any], method: str) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            responses = handle(request, context)
            if inspect.isawaitable(responses):  # It writes by the context, as the health service's Watch does.
                await responses
                return
            async for response in responses:
                yield response
        except (grpc.aio.AbortError, grpc.RpcError):
            raise
        except Exception as error:  # noqa: BLE001
            await _abort(context, error, method)

    return call


async def _abort(context: Context, error: Exception, method: str) -> NoReturn:
    if not isinstance(error, ServiceError):
        internal = InternalError(uuid.uuid4().hex)
        log.error("handler raised", extra={"method": method, "error_id": internal.metadata["error_id"]}, exc_info=error)
        error = internal
    await context.abort_with_status(rpc_status.to_status(to_status(error)))
    raise AssertionError("abort_with_status does not return")
