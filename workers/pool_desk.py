"""Where routers leave wishes for pool sizes, and whoever runs the pools takes them.

Routers know no Ray, and the owner of the pools has no port: the store that both know carries one
short question and its answer. A pure client: it imports nothing else of the workers but the roles.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass

from redis.asyncio import Redis

from workers.registry import Role
from workers.store import reaching

# Longest silence of the store that a command waits out before it counts as failed.
_COMMAND_TIMEOUT_S = 5.0
_LOOK_S = 1.0
_ANSWER_LIFE_S = 60


@dataclass(frozen=True, slots=True)
class PoolRequest:
    """A wish that a pool have so many workers; `number` names its answer."""

    number: str
    role: Role
    workers: int


@dataclass(frozen=True, slots=True)
class PoolAnswer:
    """How many workers the pool is meant to have; `problem` says why it is another number."""

    workers: int
    problem: str = ""


class PoolDesk:
    """Both sides of the question, for one cluster.

    Every method raises `redis.exceptions.RedisError` or OSError when the store cannot be reached.
    """

    def __init__(self, url: str, cluster: str) -> None:
        self._redis = Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=_COMMAND_TIMEOUT_S,
            socket_connect_timeout=_COMMAND_TIMEOUT_S,
        )
        self._attended = f"tandem:{cluster}:pools:attended"
        self._wishes = f"tandem:{cluster}:pools:wishes"
        self._answers = f"tandem:{cluster}:pools:answer:"

    async def attend(self, lease_s: float) -> None:
        """Say that wishes are taken, for so long."""
        with reaching():
            await self._redis.set(self._attended, "1", px=int(lease_s * 1e3))

    async def ask(self, role: Role, workers: int, timeout_s: float) -> PoolAnswer | None:
        """Have a pool's size changed; None when nobody runs the pools or nobody answers in time.

        A wish that nobody took in time is withdrawn: it does not come true later.
        """
        with reaching():
            if not await self._redis.exists(self._attended):
                return None
            request = PoolRequest(secrets.token_hex(8), role, workers)
            wish = json.dumps(asdict(request))
            await self._redis.rpush(self._wishes, wish)
            key = self._answers + request.number
            waited_s = 0.0
            while waited_s < timeout_s:
                look_s = min(_LOOK_S, timeout_s - waited_s)
                found = await self._redis.blpop([key], timeout=look_s)
                if found is not None:
                    return PoolAnswer(**json.loads(found[1]))
                waited_s += look_s
            await self._redis.lrem(self._wishes, 0, wish)
            return None

    async def take(self) -> PoolRequest | None:
        """The next wish; None when there is none for a moment."""
        with reaching():
            found = await self._redis.blpop([self._wishes], timeout=_LOOK_S)
        return None if found is None else PoolRequest(**json.loads(found[1]))

    async def answer(self, request: PoolRequest, answer: PoolAnswer) -> None:
        """Tell whoever had the wish what became of it."""
        key = self._answers + request.number
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.rpush(key, json.dumps(asdict(answer)))
        pipeline.expire(key, _ANSWER_LIFE_S)
        with reaching():
            await pipeline.execute()

    async def close(self) -> None:
        await self._redis.aclose()
