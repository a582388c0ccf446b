"""The router as a process: what it prints, what it loads, and when it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from router.config import RouterConfig

TIMEOUT_S = 30.0


def config(model_dir: Path, http: str = "127.0.0.1:0") -> RouterConfig:
    return RouterConfig(model_path=str(model_dir), model_name="tiny", grpc="127.0.0.1:0", http=http)


@asynccontextmanager
async def router_process(text: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "router",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(text.encode() + b"\n")
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def first_line(process: asyncio.subprocess.Process) -> dict[str, str]:
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), TIMEOUT_S)
    addresses: dict[str, str] = json.loads(line)
    return addresses


@pytest.mark.parametrize("end", ["SIGTERM", "end of stdin"])
async def test_it_prints_its_addresses_serves_and_ends_when_told(model_dir: Path, end: str) -> None:
    async with router_process(config(model_dir).to_json()) as process:
        addresses = await first_line(process)
        assert set(addresses) == {"grpc", "http"}
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"http://{addresses['http']}/v1/models") as response,
        ):
            assert response.status == 200
        if end == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        else:
            assert process.stdin is not None
            process.stdin.close()
        assert await asyncio.wait_for(process.wait(), TIMEOUT_S) == 0


async def test_a_port_in_use_is_one_line_that_names_it(model_dir: Path) -> None:
    taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with taken:
        address = f"127.0.0.1:{taken.sockets[0].getsockname()[1]}"
        async with router_process(config(model_dir, http=address).to_json()) as process:
            assert await asyncio.wait_for(process.wait(), TIMEOUT_S) == 1
            assert process.stderr is not None
            error = (await process.stderr.read()).decode()
    assert address in error
    assert "Traceback" not in error


async def test_a_wrong_configuration_is_one_line_that_names_the_field() -> None:
    text = json.dumps({"model_path": "x", "model_name": "x", "queue_limits": 3})
    async with router_process(text) as process:
        assert await asyncio.wait_for(process.wait(), TIMEOUT_S) == 1
        assert process.stderr is not None
        error = (await process.stderr.read()).decode()
    assert "queue_limits" in error
    assert "Traceback" not in error


async def test_it_loads_neither_torch_nor_ray_nor_transformers() -> None:
    code = "import router.__main__, sys; print(*sys.modules)"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    roots = {name.partition(".")[0] for name in out.decode().split()}
    assert "grpc" in roots
    assert not roots & {"torch", "ray", "transformers", "nixl"}
