"""Who is let in: API keys and certificates, over gRPC and HTTP alike, and over the local socket."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import grpc
import pytest

from protos.tandem.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc
from router.config import ApiKey, RouterConfig, Tenant, TlsFiles
from router.server import Addresses, RouterServer
from tests.integration.router.certificates import Authority
from tests.integration.router.fake_workers import FakeWorker, Script

KEY = "the key of alice, who is let in"


@contextlib.asynccontextmanager
async def serving(
    model_dir: Path,
    tls: TlsFiles | None = None,
    keys: tuple[ApiKey, ...] | None = None,
    socket: Path | None = None,
    tenants: tuple[Tenant, ...] = (),
) -> AsyncIterator[tuple[Addresses, RouterServer]]:
    worker = FakeWorker("d", "decode", Script(answer=[50]))
    config = RouterConfig(
        model_path=str(model_dir),
        model_name="tiny",
        workers=(await worker.start(),),
        grpc="127.0.0.1:0",
        http="127.0.0.1:0",
        tls=tls,
        api_keys=keys,
        tenants=tenants,
        local_socket=None if socket is None else str(socket),
    )
    server = RouterServer(config, validate=True)
    try:
        yield await server.start(), server
    finally:
        await server.stop()
        await worker.kill()


def alice() -> tuple[ApiKey, ...]:
    return (
        ApiKey("alice", hashlib.sha256(KEY.encode()).hexdigest()),
        ApiKey("bob", hashlib.sha256(b"another").hexdigest()),
    )


def request() -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(
        token_ids=inference_pb2.TokenIds(ids=[7]),
        sampling=inference_pb2.ClientSampling(max_tokens=2),
    )


async def tokens(channel: grpc.aio.Channel, *metadata: tuple[str, str]) -> int:
    call = inference_pb2_grpc.InferenceStub(channel).Generate(request(), metadata=metadata)
    return sum([len(response.delta.token_ids) async for response in call])


async def test_without_a_known_key_nothing_is_served(
    model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(model_dir, keys=alice(), socket=tmp_path / "s") as (addresses, server):
        async with grpc.aio.insecure_channel(addresses.grpc) as channel:
            assert await tokens(channel, ("authorization", f"Bearer {KEY}")) == 2
            for metadata in ((), (("authorization", "Bearer wrong secret"),)):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await tokens(channel, *metadata)
                assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await admin_pb2_grpc.AdminStub(channel).GetStatus(admin_pb2.GetStatusRequest())
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
        async with aiohttp.ClientSession(f"http://{addresses.http}") as client:
            body, good = {"prompt": [7], "max_tokens": 2}, {"authorization": f"Bearer {KEY}"}
            async with client.post("/v1/completions", json=body, headers=good) as response:
                assert response.status == 200
            for headers in ({}, {"authorization": "Basic abc"}, {"authorization": "Bearer no"}):
                async with client.post("/v1/completions", json=body, headers=headers) as response:
                    assert response.status == 401
                    assert (await response.json())["error"]["code"] == "invalid_api_key"
            async with client.get("/v1/models") as response:
                assert response.status == 401
            for path in ("/health", "/metrics"):
                async with client.get(path) as response:
                    assert response.status == 200
        # Whoever may open the socket is let in, without a key.
        async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
            assert await tokens(channel) == 2
    assert KEY not in caplog.text
    assert "wrong secret" not in caplog.text
    del server


async def test_tls_serves_both_ports_and_refuses_plain_clients(
    model_dir: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    ca = authority.pair.cert.read_bytes()
    async with serving(model_dir, TlsFiles(str(pair.cert), str(pair.key))) as (addresses, _):
        credentials = grpc.ssl_channel_credentials(ca)
        async with grpc.aio.secure_channel(addresses.grpc, credentials) as channel:
            assert await tokens(channel) == 2
        context = ssl.create_default_context(cafile=str(authority.pair.cert))
        async with aiohttp.ClientSession() as client:
            url = f"https://{addresses.http}/v1/models"
            async with client.get(url, ssl=context) as response:
                assert response.status == 200
            with pytest.raises(aiohttp.ClientError):
                await client.get(f"http://{addresses.http}/v1/models")
        async with grpc.aio.insecure_channel(addresses.grpc) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await tokens(channel)


async def test_with_a_client_ca_only_its_certificates_are_served(
    model_dir: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    pair, client_pair = authority.issue("server"), authority.issue("client")
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other", "other").issue("stranger")
    ca = authority.pair.cert.read_bytes()
    tls = TlsFiles(str(pair.cert), str(pair.key), str(authority.pair.cert))
    async with serving(model_dir, tls) as (addresses, _):
        for own, served in ((client_pair, True), (stranger, False), (None, False)):
            files = (None, None) if own is None else (own.key.read_bytes(), own.cert.read_bytes())
            credentials = grpc.ssl_channel_credentials(ca, *files)
            context = ssl.create_default_context(cafile=str(authority.pair.cert))
            if own is not None:
                context.load_cert_chain(own.cert, own.key)
            async with (
                grpc.aio.secure_channel(addresses.grpc, credentials) as channel,
                aiohttp.ClientSession() as client,
            ):
                url = f"https://{addresses.http}/v1/models"
                if served:
                    assert await tokens(channel) == 2
                    async with client.get(url, ssl=context) as response:
                        assert response.status == 200
                else:
                    with pytest.raises(grpc.aio.AioRpcError):
                        await tokens(channel)
                    with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
                        await client.get(url, ssl=context)


async def test_a_file_of_tls_that_is_not_there_is_named(model_dir: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent.pem"
    with pytest.raises(OSError, match=r"absent\.pem"):
        async with serving(model_dir, TlsFiles(str(absent), str(absent))):
            await asyncio.sleep(0)


async def test_a_tenant_over_its_rate_is_told_when_to_come_again(model_dir: Path) -> None:
    slow = Tenant("alice", tokens_per_s=0.001, burst_tokens=3)  # one request of 1 + 2 tokens
    async with serving(model_dir, keys=alice(), tenants=(slow,)) as (addresses, _):
        key = ("authorization", f"Bearer {KEY}")
        async with grpc.aio.insecure_channel(addresses.grpc) as channel:
            assert await tokens(channel, key) == 2
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await tokens(channel, key)
            assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "retry-after" in str(error.value.trailing_metadata())
            # Others have limits of their own.
            assert await tokens(channel, ("authorization", "Bearer another")) == 2
        async with aiohttp.ClientSession(f"http://{addresses.http}") as client:
            body, headers = {"prompt": [7], "max_tokens": 2}, {"authorization": f"Bearer {KEY}"}
            async with client.post("/v1/completions", json=body, headers=headers) as response:
                assert response.status == 429
                assert int(response.headers["retry-after"]) >= 1
