"""Takes what operators ask of routers (`Admin.Scale`) to the scaler of the pools."""

from __future__ import annotations

import asyncio
import logging

from redis.exceptions import RedisError

from orchestrator.errors import UserError
from orchestrator.runtime.scaling import PoolScaler
from workers.pool_desk import PoolAnswer, PoolDesk

_LOG = logging.getLogger(__name__)
# While the owner of the pools is away for longer, routers say so instead of waiting for it.
_ATTENDED_S = 5.0
_RETRY_S = 0.5


async def serve_scale_requests(scaler: PoolScaler, desk: PoolDesk) -> None:
    """Answer every request until cancelled; a store that is away is waited for."""
    while True:
        try:
            await desk.attend(_ATTENDED_S)
            request = await desk.take()
            if request is None:
                continue
            problem = ""
            try:
                await scaler.scale(request.role, request.workers)
                _LOG.info("the %s pool shall have %d workers", request.role, request.workers)
            except UserError as error:
                problem = f"{error.message}; {error.hint}" if error.hint else error.message
            await desk.answer(request, PoolAnswer(scaler.counts()[request.role], problem))
        except (RedisError, OSError) as error:
            _LOG.warning("scale requests: the store is away: %s", error)
            await asyncio.sleep(_RETRY_S)
