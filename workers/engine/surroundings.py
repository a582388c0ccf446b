"""What an engine whose rules are pure is given of the world: who it is to others, how it reaches
them, and time and chance, which tests have virtual."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from workers.handoff.notifications import Notifications


@dataclass(frozen=True, slots=True)
class Identity:
    """What a hand-off names; `address` is where messages of other workers reach this one."""

    worker_id: str
    model_fingerprint: str
    epoch: int
    address: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """`send(address, message)` takes a message to another worker, which hands it to its `arrived`;
    one that gets lost costs the request its lease and nothing else. `clock_s` is monotonic."""

    identity: Identity
    send: Callable[[str, bytes], None]
    clock_s: Callable[[], float]
    rng: random.Random

    @classmethod
    def real(
        cls, worker_id: str, model_fingerprint: str, epoch: int, notifications: Notifications
    ) -> Surroundings:
        """Those of a worker that runs."""
        return cls(
            Identity(worker_id, model_fingerprint, epoch, notifications.address),
            notifications.send,
            time.monotonic,
            random.SystemRandom(),
        )
