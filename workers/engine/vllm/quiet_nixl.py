"""Keeps NIXL's progress thread from spinning in vLLM's processes on a CPU.

NIXL's Python interface has that thread wait for nothing at all between two looks, so it takes a
core of its own for ever, and vLLM's connector leaves it so. With a time to wait it sleeps until
something comes in, or the time is over.

vLLM imports this in each process that has an agent, and before there is one, because `flags` names
`QuietNixl` as an extension of vLLM's worker. Nothing of vLLM is imported here.
"""

from __future__ import annotations

from nixl._api import nixlBind

# What comes in wakes it; only what no transport announces waits for as long as this.
_LOOK_US = 10_000

_Given = nixlBind.nixlAgentConfig


class _Patient(_Given):  # type: ignore[misc,valid-type]  # a class of C++
    """A configuration whose waiting time cannot be set to nothing."""

    @property
    def pthrDelay(self) -> int:  # noqa: N802 - the name is NIXL's
        delay_us: int = _Given.pthrDelay.__get__(self)
        return delay_us

    @pthrDelay.setter
    def pthrDelay(self, delay_us: int) -> None:  # noqa: N802
        _Given.pthrDelay.__set__(self, max(delay_us, _LOOK_US))


nixlBind.nixlAgentConfig = _Patient


class QuietNixl:
    """Adds nothing to vLLM's worker: naming it has this module imported."""
