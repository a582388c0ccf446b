"""A whole router: the dispatcher behind its gRPC and HTTP servers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from router.config import RouterConfig
from router.dispatcher import Dispatcher
from router.grpc_server import GrpcServer
from router.openai_http.server import HttpServer
from workers.telemetry import start_tracing

_GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a router listens."""

    grpc: str
    http: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class RouterServer:
    """Starts and stops everything that one router is."""

    def __init__(self, config: RouterConfig, validate: bool = False) -> None:
        """`validate` audits the core after each event. Raises ModelFilesError when the
        checkpoint's tokenizer or configuration is broken."""
        self._config = config
        self._tracing = start_tracing("tandem-router", config.trace)
        self.dispatcher = Dispatcher(config, self._tracing, validate)
        self._grpc: GrpcServer | None = None
        self._http: HttpServer | None = None

    async def start(self) -> Addresses:
        """Connect and listen. Raises OSError for an address that cannot be bound."""
        config = self._config
        await self.dispatcher.start()
        self._grpc = GrpcServer(self.dispatcher, config)
        self._http = HttpServer(self.dispatcher, config)
        return Addresses(
            grpc=await self._grpc.start(config.grpc), http=await self._http.start(config.http)
        )

    async def stop(self) -> None:
        """End every request with REASON_SHUTTING_DOWN, tell the clients, and free everything."""
        self.dispatcher.end_all()
        if self._grpc is not None:
            await self._grpc.stop(_GRACE_S)
        if self._http is not None:
            await self._http.stop()
        await self.dispatcher.stop()
        self._tracing.close()
