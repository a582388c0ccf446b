"""One request of a trace, the same for the planner, the simulator and live load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Tokens in a block that a hash id of Mooncake's traces names.
BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request.

    Attributes:
        at_s: when it comes, the first of a trace at 0.
        hash_ids: names of the prefixes of 1, 2, ... blocks of 512 tokens.
        class_name: its priority class; empty for the first one.
        session: requests with the same name are turns of one conversation; empty for none.
        text: the prompt itself, where the trace has it.
    """

    at_s: float
    prompt_tokens: int
    answer_tokens: int
    hash_ids: Sequence[int] = ()
    class_name: str = ""
    session: str = ""
    text: str = ""

    @property
    def block_names(self) -> tuple[int, ...]:
        """Names of the prefixes of 0, 1, ... full blocks; 0 is the empty one's."""
        full = self.prompt_tokens // BLOCK_TOKENS
        return (0, *(identity + 1 for identity in self.hash_ids[:full]))
