"""The worker directory: which workers exist, kept in Valkey or Redis under leases.

A worker that stops renewing vanishes on its own, so nobody has to notice a death in order to
clean up after it. Readers follow changes by pub/sub and poll as well, since the end of a lease
is announced by nobody. A pure client: of the workers it imports nothing but what the store raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from typing import Literal

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as StoreConnectionError
from redis.exceptions import RedisError

from workers.store import reaching

Role = Literal["prefill", "decode"]

# Longest silence of the store that a command waits out before it counts as failed.
_COMMAND_TIMEOUT_S = 5.0
_RECONNECT_S = 0.2

# Begins the message of a worker that goes on its own; the others name one that came.
_WITHDRAWN = "withdrawn:"


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """What the directory says of one worker; `worker_id` is new for every start."""

    worker_id: str
    role: Role
    engine: str
    address: str
    model_name: str
    model_fingerprint: str
    epoch: int
    max_model_tokens: int
    vocab_size: int
    layout: str
    pid: int
    started_unix_s: float

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> WorkerRecord:
        """Parse a record; raises ValueError when it is not one."""
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(f"not a worker record: {error}") from error


Snapshot = dict[str, tuple[WorkerRecord, float]]


class WorkerDirectory:
    """Reads and writes the records of one cluster.

    Every method raises `redis.exceptions.RedisError` when the store cannot be reached, except
    `watch`, which waits for it to come back.
    """

    def __init__(self, url: str, cluster: str) -> None:
        self._redis = Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=_COMMAND_TIMEOUT_S,
            socket_connect_timeout=_COMMAND_TIMEOUT_S,
            # A pooled connection to a store that has restarted fails once; a new one does not.
            retry=Retry(NoBackoff(), 1, supported_errors=(StoreConnectionError,)),
        )
        self._prefix = f"tandem:{cluster}:worker:"
        self._channel = f"tandem:{cluster}:changes"

    async def register(self, record: WorkerRecord, lease_ms: int) -> None:
        """Announce a worker that is ready to serve."""
        await self.renew(record, lease_ms)
        with reaching():
            await self._redis.publish(self._channel, record.worker_id)

    async def renew(self, record: WorkerRecord, lease_ms: int) -> None:
        """Extend the lease; writes the record anew, so a store that lost it gets it back."""
        with reaching():
            await self._redis.set(self._prefix + record.worker_id, record.to_json(), px=lease_ms)

    async def withdraw(self, worker_id: str) -> None:
        """Take a worker out at once."""
        with reaching():
            await self._redis.delete(self._prefix + worker_id)
            await self._redis.publish(self._channel, _WITHDRAWN + worker_id)

    async def snapshot(self) -> Snapshot:
        """All workers under lease: worker id -> (record, seconds left of the lease)."""
        pattern = self._prefix + "*"
        with reaching():
            keys = sorted([key async for key in self._redis.scan_iter(pattern, count=1000)])
            if not keys:
                return {}
            pipeline = self._redis.pipeline(transaction=False)
            for key in keys:
                pipeline.get(key)
                pipeline.pttl(key)
            answers = await pipeline.execute()
        workers: Snapshot = {}
        for text, remaining_ms in zip(answers[::2], answers[1::2], strict=True):
            if text is not None and remaining_ms > 0:
                record = WorkerRecord.from_json(text)
                workers[record.worker_id] = (record, remaining_ms / 1000.0)
        return workers

    async def watch(self, poll_s: float = 0.5) -> AsyncIterator[Snapshot]:
        """Yield the workers now, and again whenever one comes, goes or changes its record.

        A worker goes when it withdraws or when its lease, as last seen, has run out; that its
        record is missing is not enough, for the store may have restarted empty between two looks.
        While the store is away the last snapshot stands: losing the directory is no reason to
        drop workers whose sessions are alive. A store that comes back may have lost everything, so
        for the length of a lease, in which the living register again, it takes no worker away.
        """
        known: dict[str, WorkerRecord] | None = None
        believed_until_s: dict[str, float] = {}
        loop = asyncio.get_running_loop()
        lease_s = 0.0
        while True:
            try:
                async with self._redis.pubsub() as changes:
                    with reaching():
                        await changes.subscribe(self._channel)
                    while True:
                        workers = await self.snapshot()
                        lease_s = max([lease_s, *(left_s for _, left_s in workers.values())])
                        for name, (_, left_s) in workers.items():
                            believed_until_s[name] = loop.time() + left_s
                        for name, record in (known or {}).items():
                            if name not in workers and loop.time() < believed_until_s[name]:
                                workers[name] = (record, 0.0)
                        records = {name: record for name, (record, _) in workers.items()}
                        if records != known:
                            known = records
                            yield workers
                        with reaching():
                            message = await changes.get_message(
                                ignore_subscribe_messages=True, timeout=poll_s
                            )
                        if message and str(message["data"]).startswith(_WITHDRAWN):
                            believed_until_s[message["data"].removeprefix(_WITHDRAWN)] = 0.0
            except (RedisError, OSError):
                await asyncio.sleep(_RECONNECT_S)
                believed_until_s = dict.fromkeys(known or {}, loop.time() + lease_s)

    async def close(self) -> None:
        await self._redis.aclose()


async def keep_registered(
    directory: WorkerDirectory,
    current: Callable[[], WorkerRecord],
    lease_ms: int,
    stop: asyncio.Event,
) -> None:
    """Hold the lease of the `current` record until `stop` is set, then withdraw it.

    Renews three times per lease, so that two lost renewals do not lose the worker; a store that
    is away for longer gets the record back when it returns.
    """
    announced: WorkerRecord | None = None
    while not stop.is_set():
        record = current()
        with contextlib.suppress(RedisError, OSError):
            if announced == record:
                await directory.renew(record, lease_ms)
            else:
                await directory.register(record, lease_ms)
                announced = record
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), lease_ms / 3000.0)
    with contextlib.suppress(RedisError, OSError):
        await directory.withdraw(current().worker_id)
