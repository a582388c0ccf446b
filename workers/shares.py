"""How a worker shares out what it can take among the routers that feed it.

Routers do not know of each other. Given all of what is free, each of them would fill it, and the
worker would refuse most of what comes (ai-dynamo#589: many routers herd). Given equal parts, they
overfill it by less than one request each. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from workers.engine.events import Credits


@dataclass(frozen=True, slots=True)
class Grant:
    """What one router may send; as the message Credits."""

    request_slots: int
    free_tokens: int
    total_tokens: int
    total_slots: int
    all_free_tokens: int
    draining: bool


def grant(credits: Credits, routers: int) -> Grant:
    """The part of each of `routers` routers.

    Parts are rounded up: the last free slot is offered to all, because a router that does not need
    it would otherwise keep it from one that does. All of the free tokens are named as well: a
    request that is larger than a part must fit somewhere.
    """
    if credits.draining:
        return Grant(0, 0, credits.total_tokens, credits.total_slots, 0, draining=True)
    return Grant(
        request_slots=-(-credits.request_slots // routers),
        free_tokens=-(-credits.free_tokens // routers),
        total_tokens=credits.total_tokens,
        total_slots=credits.total_slots,
        all_free_tokens=credits.free_tokens,
        draining=False,
    )
