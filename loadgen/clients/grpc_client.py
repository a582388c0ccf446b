"""Our own protocol over gRPC: tokens in, tokens out, and each request's report at its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

import grpc

from loadgen.clients import hints
from loadgen.clients.client import Ask, Endpoint
from loadgen.errors import LoadError
from loadgen.recording import Record, Speculation
from protos.tandem.v1 import common_pb2, inference_pb2, inference_pb2_grpc

if TYPE_CHECKING:
    from protos.tandem.v1.inference_pb2_grpc import InferenceAsyncStub

# Streams share connections; several, so that several routers at one port all get some.
_CHANNELS = 8
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 64 * 2**20),
)
_ANSWER_TIMEOUT_S = 10.0
_REASON_METADATA = "tandem-reason"
_WELL = frozenset(
    {common_pb2.REASON_STOP_TOKEN, common_pb2.REASON_STOP_STRING, common_pb2.REASON_LENGTH}
)


def channel_to(address: str, root_certificates: bytes | None, tls: bool) -> grpc.aio.Channel:
    """A connection of its own."""
    if tls:
        credentials = grpc.ssl_channel_credentials(root_certificates)
        return grpc.aio.secure_channel(address, credentials, _OPTIONS)
    return grpc.aio.insecure_channel(address, _OPTIONS)


class GrpcClient:
    """Sends requests to the router at one address."""

    def __init__(
        self,
        address: str,
        *,
        tls: bool = False,
        root_certificates: bytes | None = None,
        api_key: str = "",
        timeout_s: float = 600.0,
        keep_answers: bool = False,
        channels: int = _CHANNELS,
    ) -> None:
        """`keep_answers`: later turns need them."""
        self._address = address
        self._channels = [channel_to(address, root_certificates, tls) for _ in range(channels)]
        self._stubs: Sequence[InferenceAsyncStub] = [
            inference_pb2_grpc.InferenceStub(channel) for channel in self._channels
        ]
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._timeout_s = timeout_s
        self._keep_answers = keep_answers
        self._next = 0

    async def open(self) -> Endpoint:
        """Raises LoadError when no router answers."""
        for channel in self._channels[1:]:
            channel.get_state(try_to_connect=True)
        try:
            model = await self._stubs[0].GetModel(
                inference_pb2.GetModelRequest(),
                timeout=_ANSWER_TIMEOUT_S,
                metadata=self._metadata,
            )
        except grpc.aio.AioRpcError as error:
            told = (error.details() or error.code().name).rpartition("last error: ")[2]
            raise LoadError(f"--target {self._address}: {told}", _hint(error)) from error
        return Endpoint(model.name, model.max_model_tokens, model.vocab_size, is_tandem=True)

    async def ask(self, ask: Ask, record: Record) -> None:
        request = inference_pb2.GenerateRequest(
            token_ids=inference_pb2.TokenIds(ids=ask.token_ids),
            sampling=inference_pb2.ClientSampling(
                max_tokens=ask.max_tokens,
                temperature=ask.temperature,
                ignore_eos=ask.ignore_eos,
            ),
            priority_class=ask.class_name,
        )
        self._next += 1
        stub = self._stubs[self._next % len(self._stubs)]
        record.send()
        finished: inference_pb2.Finished | None = None
        try:
            call = stub.Generate(request, timeout=self._timeout_s, metadata=self._metadata)
            async for response in call:
                if response.HasField("finished"):
                    finished = response.finished
                    continue
                token_ids = response.delta.token_ids
                record.chunk(len(token_ids))
                if self._keep_answers:
                    record.answer_ids.extend(token_ids)
        except grpc.aio.AioRpcError as error:
            record.end(_reason(error), error.details() or "")
            return
        if finished is None:
            record.end("REASON_INTERNAL", "the stream ended without its last message")
            return
        reason = common_pb2.ReasonCode.Name(finished.reason)
        record.finish = reason
        _note_report(record, finished)
        record.end("" if finished.reason in _WELL else reason)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)


def _hint(error: grpc.aio.AioRpcError) -> str:
    """What to change when no router answers; gRPC tells reasons apart by their words alone."""
    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
        return hints.NO_KEY
    told = error.details() or ""
    if "CERTIFICATE_VERIFY_FAILED" in told:
        return hints.UNTRUSTED
    if "WRONG_VERSION_NUMBER" in told:
        return "it does not speak TLS there: try grpc://"
    if "Failed parsing HTTP/2" in told or "Socket closed" in told:
        return hints.OTHER_PORT
    return hints.NOBODY


def _reason(error: grpc.aio.AioRpcError) -> str:
    """The router's own reason, or gRPC's status when it could not say one."""
    # The stubs do not know that metadata is made of pairs.
    pairs = cast(Iterable[tuple[str, str]], error.trailing_metadata() or ())
    return dict(pairs).get(_REASON_METADATA) or error.code().name


def _note_report(record: Record, finished: inference_pb2.Finished) -> None:
    report = finished.report
    record.cached_tokens = report.cached_tokens
    if report.HasField("speculation"):
        told = report.speculation
        record.speculation = Speculation()
        record.speculation.add_report(told.steps, list(told.drafted), list(told.accepted))
        record.measured = "engine report"
