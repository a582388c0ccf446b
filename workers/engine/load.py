"""How busy an engine is and how quickly it works, measured as it goes: what routers plan with.

Rates are of the time in which the work was done, not of all time, so that an idle engine does not
look like a slow one. Pure: durations are passed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Half of a measured rate is what happened in the last so many seconds of that work.
_HALF_LIFE_S = 2.0
# How often routers hear of a load that merely went up or down.
LOAD_NEWS_S = 0.1


@dataclass(slots=True, init=False)
class Load:
    """As the message of that name; what was not measured yet is 0."""

    running_requests: Final[int]
    decoding_requests: Final[int]
    waiting_prefill_tokens: Final[int]
    prefill_tokens_per_s: Final[float]
    step_ms: Final[float]
    step_requests: Final[int]
    step_tokens: Final[float]
    link_bytes_in_flight: Final[int]
    link_bytes_per_s: Final[float]
    state_bytes_per_token: Final[float]
    state_bytes_per_request: Final[int]

    def __init__(
        self,
        running_requests: int = 0,
        decoding_requests: int = 0,
        waiting_prefill_tokens: int = 0,
        prefill_tokens_per_s: float = 0.0,
        step_ms: float = 0.0,
        step_requests: int = 0,
        step_tokens: float = 0.0,
        link_bytes_in_flight: int = 0,
        link_bytes_per_s: float = 0.0,
        state_bytes_per_token: float = 0.0,
        state_bytes_per_request: int = 0,
    ) -> None:
        self.running_requests = running_requests
        self.decoding_requests = decoding_requests
        self.waiting_prefill_tokens = waiting_prefill_tokens
        self.prefill_tokens_per_s = prefill_tokens_per_s
        self.step_ms = step_ms
        self.step_requests = step_requests
        self.step_tokens = step_tokens
        self.link_bytes_in_flight = link_bytes_in_flight
        self.link_bytes_per_s = link_bytes_per_s
        self.state_bytes_per_token = state_bytes_per_token
        self.state_bytes_per_request = state_bytes_per_request


class Rate:
    """Amount per second of work, older work counting less and less."""

    def __init__(self, half_life_s: float = _HALF_LIFE_S) -> None:
        self._half_life_s = half_life_s
        self._amount = 0.0
        self._seconds = 0.0

    def add(self, amount: float, seconds: float) -> None:
        """Count a piece of work that took so long."""
        if seconds <= 0.0:
            return
        kept = 0.5 ** (seconds / self._half_life_s)
        self._amount = self._amount * kept + amount
        self._seconds = self._seconds * kept + seconds

    @property
    def per_s(self) -> float:
        """0 before the first piece of work."""
        return self._amount / self._seconds if self._seconds else 0.0


class LoadMeter:
    """Collects what an engine does; one owner, its loop."""

    def __init__(self, state_bytes_per_token: float, state_bytes_per_request: int) -> None:
        self.state_bytes_per_token = state_bytes_per_token
        self.state_bytes_per_request = state_bytes_per_request
        self._prefill = Rate()
        self._link = Rate()
        self._step_ms = 0.0
        self._step_requests = 0
        self._step_tokens = 0.0
        self._said: Load | None = None
        self._said_s = 0.0

    def read(self, tokens: int, seconds: float) -> None:
        """Some tokens of prompts were read."""
        self._prefill.add(tokens, seconds)

    def decoded(self, requests: int, tokens: int, seconds: float) -> None:
        """One decode step was made."""
        self._step_ms = seconds * 1000.0
        self._step_requests = requests
        self._step_tokens = tokens / requests

    def sent(self, state_bytes: int, seconds: float) -> None:
        """One hand-off was written."""
        self._link.add(state_bytes, seconds)

    def state_bytes(self, tokens: int) -> int:
        """What the hand-off of so many tokens moves."""
        return int(tokens * self.state_bytes_per_token) + self.state_bytes_per_request

    def news(
        self,
        now_s: float,
        least_gap_s: float,
        *,
        running_requests: int,
        decoding_requests: int,
        waiting_prefill_tokens: int,
        link_bytes_in_flight: int,
    ) -> Load | None:
        """The load, if a count came to or from zero, or changed and the last news is old enough."""
        load = Load(
            running_requests=running_requests,
            decoding_requests=decoding_requests,
            waiting_prefill_tokens=waiting_prefill_tokens,
            prefill_tokens_per_s=self._prefill.per_s,
            step_ms=self._step_ms,
            step_requests=self._step_requests,
            step_tokens=self._step_tokens,
            link_bytes_in_flight=link_bytes_in_flight,
            link_bytes_per_s=self._link.per_s,
            state_bytes_per_token=self.state_bytes_per_token,
            state_bytes_per_request=self.state_bytes_per_request,
        )
        if load == self._said:
            return None
        if self._said is not None and now_s - self._said_s < least_gap_s:
            began_or_ended = [
                bool(load.running_requests) != bool(self._said.running_requests),
                bool(load.waiting_prefill_tokens) != bool(self._said.waiting_prefill_tokens),
                bool(load.link_bytes_in_flight) != bool(self._said.link_bytes_in_flight),
            ]
            if not any(began_or_ended):
                return None
        self._said, self._said_s = load, now_s
        return load
