"""The gRPC server of the router: its services with health, reflection and bounded messages."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos.tandem.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc
from router.access import Access, grpc_credentials
from router.admin_service import AdminService
from router.config import RouterConfig
from router.dispatcher import Dispatcher
from router.grpc_services import InferenceService

_INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name


class GrpcServer:
    """Serves the router's gRPC services at one address."""

    def __init__(self, dispatcher: Dispatcher, config: RouterConfig) -> None:
        """Raises OSError for TLS files that cannot be read."""
        self._dispatcher = dispatcher
        self._credentials = None if config.tls is None else grpc_credentials(config.tls)
        self._local_socket = config.local_socket
        access = Access(config.api_keys)
        max_message_bytes = config.max_message_bytes
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._publishing: set[asyncio.Task[None]] = set()
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                # Two routers on one port are an error, unless they were told of each other.
                ("grpc.so_reuseport", int(config.shares_ports)),
            )
        )
        inference_pb2_grpc.add_InferenceServicer_to_server(
            InferenceService(dispatcher, access), self._server
        )
        # Calls that it lacks are answered UNIMPLEMENTED by its base class.
        admin = AdminService(dispatcher, access)  # type: ignore[abstract]
        admin_pb2_grpc.add_AdminServicer_to_server(admin, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (_INFERENCE, _ADMIN, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    async def start(self, address: str) -> str:
        """Listen; returns the address with the port that was bound. Raises OSError."""
        host = address.rpartition(":")[0]
        try:
            if self._credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise OSError(
                f"grpc: cannot listen on {address}; is the port in use? Choose another, or 0"
            ) from error
        if self._local_socket is not None:
            # Who may come in there, the permissions of its folder say.
            await asyncio.to_thread(Path(self._local_socket).unlink, missing_ok=True)
            self._server.add_insecure_port(f"unix:{self._local_socket}")
        await self._publish_health()
        self._dispatcher.on_ready_change(self._readiness_changed)
        await self._server.start()
        return f"{host}:{port}"

    async def stop(self, grace_s: float) -> None:
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    def _readiness_changed(self) -> None:
        task = asyncio.create_task(self._publish_health())
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def _publish_health(self) -> None:
        """The router itself (the empty name) is well; Inference is when it has a decode worker."""
        statuses = health_pb2.HealthCheckResponse
        ready = self._dispatcher.ready
        await self._health.set(_INFERENCE, statuses.SERVING if ready else statuses.NOT_SERVING)
