"""The gRPC server of the router: its services with health, reflection and bounded messages."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from protos.tandem.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc
from router.access import Access, ssl_context
from router.admin_service import AdminService
from router.config import RouterConfig
from router.grpc_services import InferenceService
from router.models import Models
from workers.http2.server import Http2Server
from workers.pool_desk import PoolDesk

_INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name


class GrpcServer:
    """Serves the router's gRPC services at one address."""

    def __init__(self, models: Models, config: RouterConfig) -> None:
        """Raises OSError for TLS files that cannot be read."""
        self._models = models
        self._tls = None if config.tls is None else ssl_context(config.tls)
        self._shares_port = config.shares_ports
        self._local_socket = config.local_socket
        access = Access(config.api_keys)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._publishing: set[asyncio.Task[None]] = set()
        self._server = Http2Server(config.max_message_bytes)
        # Has the two methods that generated code calls.
        server = cast("grpc.aio.Server", self._server)
        inference = InferenceService(models, access)
        inference_pb2_grpc.add_InferenceServicer_to_server(inference, server)
        self._desk: PoolDesk | None = None
        if config.store_url is not None:
            self._desk = PoolDesk(config.store_url, config.cluster)
        admin = AdminService(models, access, self._desk)
        admin_pb2_grpc.add_AdminServicer_to_server(admin, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (_INFERENCE, _ADMIN, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            ReflectionServicer(names), server
        )

    async def start(self, address: str) -> str:
        """Listen; returns the address with the port that was bound. Raises OSError."""
        host, port = address.rpartition(":")[0], int(address.rpartition(":")[2])
        await self._publish_health()
        for dispatcher in self._models:
            dispatcher.on_ready_change(self._readiness_changed)
        try:
            bound = await self._server.listen(host.strip("[]"), port, self._tls, self._shares_port)
        except OSError as error:
            raise OSError(
                f"grpc: cannot listen on {address}: {error.strerror or error}; choose another "
                "port, or 0"
            ) from error
        if self._local_socket is not None:
            # Who may come in there, the permissions of its folder say.
            await asyncio.to_thread(Path(self._local_socket).unlink, missing_ok=True)
            await self._server.listen_unix(self._local_socket)
        return f"{host}:{bound}"

    async def stop(self, grace_s: float) -> None:
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
        if self._desk is not None:
            await self._desk.close()

    def _readiness_changed(self) -> None:
        task = asyncio.create_task(self._publish_health())
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def _publish_health(self) -> None:
        """The router itself (the empty name) is well; Inference is when it has a decode worker."""
        statuses = health_pb2.HealthCheckResponse
        ready = self._models.ready
        await self._health.set(_INFERENCE, statuses.SERVING if ready else statuses.NOT_SERVING)
