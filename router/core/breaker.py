"""A breaker for each worker: one that fails again and again is left alone, then tried with one.

closed -> (failures in a row) -> open -> (time) -> half open -> one success -> closed
                                                            -> one failure -> open, twice as long
"""

from __future__ import annotations

from dataclasses import dataclass

from router.core.policy import Policy


@dataclass(slots=True, eq=False)
class Breaker:
    """Of one worker. `probe` is the handle of the one request that a half-open breaker let by."""

    policy: Policy
    failures: int = 0
    wait_s: float = 0.0
    open_until_s: float | None = None
    probe: int | None = None

    @property
    def state(self) -> str:
        """closed, open or probing (half open: it waits for the outcome of one request)."""
        if self.open_until_s is None:
            return "closed"
        return "open" if self.probe is None else "probing"

    def blocks(self, now_s: float) -> bool:
        """Whether no request may go to the worker now."""
        return self.open_until_s is not None and (
            self.probe is not None or now_s < self.open_until_s
        )

    def sent(self, handle: int) -> None:
        """A request goes to the worker; through an open breaker only as its probe."""
        if self.open_until_s is not None:
            self.probe = handle

    def succeeded(self) -> None:
        """The worker did something right."""
        self.failures, self.wait_s, self.open_until_s, self.probe = 0, 0.0, None, None

    def failed(self, now_s: float) -> None:
        """The worker did something wrong."""
        self.failures += 1
        if self.open_until_s is None and self.failures < self.policy.breaker_failures:
            return
        self.wait_s = min(
            max(2.0 * self.wait_s, self.policy.breaker_first_s), self.policy.breaker_most_s
        )
        self.open_until_s, self.probe = now_s + self.wait_s, None

    def released(self, handle: int) -> None:
        """A request left the worker; if it was the probe and told nothing, another may follow."""
        if self.probe == handle:
            self.probe = None
