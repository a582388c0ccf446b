"""What the cluster looks like while a load runs: its queue, its requests, its pools.

From a router's Watch over gRPC, or from `/metrics` over HTTP; of several routers at one address
only the one is seen that the connection reached. An endpoint that tells nothing has no such rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import aiohttp
import grpc

from protos.tandem.v1 import admin_pb2, admin_pb2_grpc

_PERIOD_S = 1.0
_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{([^}]*)\})? ([^ ]+)")
_ROLE = re.compile(r'role="(\w+)"')
# What others call the requests that wait and those that run.
_WAITING = ("tandem_queue_requests", "vllm:num_requests_waiting", "sglang:num_queue_reqs")
_RUNNING = ("tandem_running_requests", "vllm:num_requests_running", "sglang:num_running_reqs")


@dataclass(frozen=True, slots=True)
class ClusterSample:
    """The cluster at a moment, in the simulator's words; None where it does not say."""

    queued: int | None = None
    running: int | None = None
    prefill_serving: int | None = None
    decode_serving: int | None = None
    prefill_busy_share: float | None = None
    decode_busy_share: float | None = None
    matched_ratio: float | None = None


def of_status(status: admin_pb2.GetStatusResponse) -> ClusterSample:
    """From a router's answer."""
    serving = [
        worker.role
        for worker in status.workers
        if worker.connected and worker.duty in ("", "serving")
    ]
    matching = status.matching
    return ClusterSample(
        status.queued_requests,
        status.running_requests,
        serving.count("prefill"),
        serving.count("decode"),
        1.0 - matching.prefill_idle_share,
        1.0 - matching.decode_idle_share,
        matching.matched_ratio if matching.HasField("matched_ratio") else None,
    )


def of_metrics(text: str) -> ClusterSample | None:
    """From a page of Prometheus metrics of Tandem, vLLM or SGLang; None when it is of none."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        name, labels, value = found.groups()
        role = _ROLE.search(labels or "")
        key = f"{name}/{role.group(1)}" if role else name
        try:
            sums[key] = sums.get(key, 0.0) + float(value)
        except ValueError:
            continue

    def first(*names: str) -> float | None:
        return next((sums[name] for name in names if name in sums), None)

    def whole(value: float | None) -> int | None:
        return None if value is None else int(value)

    def busy(role: str) -> float | None:
        idle = first(f"tandem_idle_share/{role}")
        return None if idle is None else 1.0 - idle

    queued, running = first(*_WAITING), first(*_RUNNING)
    if queued is None and running is None:
        return None
    return ClusterSample(
        whole(queued),
        whole(running),
        whole(first("tandem_workers/prefill")),
        whole(first("tandem_workers/decode")),
        busy("prefill"),
        busy("decode"),
        first("tandem_matched_ratio"),
    )


async def watch_grpc(
    channel: grpc.aio.Channel, api_key: str = ""
) -> AsyncGenerator[ClusterSample, None]:
    """A router's status, about once a second; ends when it can no longer be had. Closes the
    channel at its end."""
    metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
    request = admin_pb2.WatchRequest(period_ms=round(_PERIOD_S * 1e3))
    async with channel:
        try:
            async for status in admin_pb2_grpc.AdminStub(channel).Watch(request, metadata=metadata):
                yield of_status(status)
        except grpc.aio.AioRpcError:
            return


async def watch_http(
    base: str, root_certificates: str | None = None, api_key: str = ""
) -> AsyncGenerator[ClusterSample, None]:
    """A page of metrics, once a second; ends when there is none."""
    context = ssl.create_default_context(cafile=root_certificates)
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context), headers=headers
    ) as session:
        while True:
            try:
                async with session.get(f"{base}/metrics") as response:
                    sample = of_metrics(await response.text()) if response.status == 200 else None
            except (aiohttp.ClientError, TimeoutError):
                return
            if sample is None:
                return
            yield sample
            await asyncio.sleep(_PERIOD_S)


class ClusterView:
    """Keeps the latest sample."""

    def __init__(self) -> None:
        self.latest: ClusterSample | None = None

    async def follow(self, samples: AsyncGenerator[ClusterSample, None]) -> None:
        async with contextlib.aclosing(samples):
            async for sample in samples:
                self.latest = sample
        self.latest = None
