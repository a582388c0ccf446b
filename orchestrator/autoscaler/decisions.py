"""A decision as a record that explains itself.

Every change of counts or roles has an id, its inputs, the formula with numbers in it, what else was
weighed, and a reason; whoever carries it out acknowledges it. `tandem why` shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from protos.tandem.v1 import common_pb2
from router.core.events import Role
from router.core.reasons import Reason, reason_name

# The reason codes of decisions in words, for people who run the cluster.
WORDS: Mapping[Reason, str] = {
    common_pb2.REASON_DEMAND_GREW: "demand grew",
    common_pb2.REASON_DEMAND_EXPECTED: (
        "demand is expected to grow before a new worker could serve"
    ),
    common_pb2.REASON_BACKLOG: "requests are waiting",
    common_pb2.REASON_LENGTHS_CHANGED: "prompts or answers have become longer",
    common_pb2.REASON_SURPLUS: "the other workers carry the load within targets",
    common_pb2.REASON_IDLE: "there is no traffic",
    common_pb2.REASON_CALLED_OFF: "workers that were waiting for GPUs are not needed any more",
    common_pb2.REASON_UNBALANCED: "one pool has workers to spare that the other one lacks",
    common_pb2.REASON_LIMITS: "the pool was outside of its limits",
    common_pb2.REASON_POLICY_RULE: "the rule of the policy",
}


# What is said of an input after its figure, for people who know nothing of the policy.
_MEANINGS: Mapping[str, str] = {
    "arrival_rps": "requests a second arrive",
    "arrival_doubt_rps": "requests a second, by which that may be off",
    "forecast_constant_rps": "a second are expected once a new worker serves: it stays as it is",
    "forecast_trend_rps": "a second are expected once a new worker serves: it goes on as it went",
    "forecast_seasonal_rps": "a second are expected once a new worker serves: as a season before",
    "recurring_jump_rps": "a second at a jump that is due to come back before that (0: none)",
    "lead_s": "seconds from deciding until a new worker serves",
    "queued_requests": "requests wait in the routers",
    "backlog_rps": "a second are added to work them off",
    "isl_tokens": "tokens in a prompt, on average",
    "osl_tokens": "tokens in an answer, on average",
    "cached_share": "of the prompts' tokens were cached already",
    "prefill_rps_per_worker": "requests a second, whose prompts one prefill worker reads",
    "decode_rps_per_worker": "requests a second, which one decode worker answers within targets",
    "prefill_correction": "times as fast as the model says, prefill workers were measured",
    "decode_correction": "times as fast as the model says, decode workers were measured",
}


@dataclass(frozen=True, slots=True)
class Alternative:
    """Something else that was weighed, and why it was not taken."""

    what: str
    why_not: str


@dataclass(frozen=True, slots=True)
class Decision:
    """One change.

    Attributes:
        at_s: on the clock of whoever observed.
        before, after: workers of each role, coming ones and flips included.
        flips: workers that take that role.
        inputs: figures that it rests on, units in their names.
        formula: how they make the counts.
        outcome: empty until it is acknowledged; then what came of it.
    """

    number: int
    at_s: float
    policy: str
    reason: Reason
    before: Mapping[Role, int]
    after: Mapping[Role, int]
    flips: Mapping[Role, int] = field(default_factory=dict)
    inputs: Mapping[str, float] = field(default_factory=dict)
    formula: str = ""
    alternatives: tuple[Alternative, ...] = ()
    outcome: str = ""

    @property
    def decision_id(self) -> str:
        return f"scale-{self.number}"

    def summary(self) -> str:
        """One line: what changes and why."""
        parts = [
            f"{role} {self.before[role]} -> {self.after[role]}"
            for role in self.after
            if self.before[role] != self.after[role]
        ]
        parts += [f"{count} take the role {role}" for role, count in self.flips.items() if count]
        return f"{self.decision_id}: {', '.join(parts) or 'nothing'}: {WORDS[self.reason]}"

    def lines(self) -> list[str]:
        """The whole story, for people."""
        lines = [self.summary()]
        lines += [
            f"  {f'{value:,.4g}':>8} {_MEANINGS.get(name, '')} ({name})"
            for name, value in self.inputs.items()
        ]
        if self.formula:
            lines.append(f"  {self.formula}")
        lines += [f"  not: {one.what}: {one.why_not}" for one in self.alternatives]
        lines.append(f"  {self.outcome or 'not acknowledged'}")
        return lines

    def document(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "decision_id": self.decision_id,
            "at_s": round(self.at_s, 3),
            "policy": self.policy,
            "reason": reason_name(self.reason),
            "reason_text": WORDS[self.reason],
            "before": dict(self.before),
            "after": dict(self.after),
            "flips": dict(self.flips),
            "inputs": dict(self.inputs),
            "formula": self.formula,
            "alternatives": [
                {"what": one.what, "why_not": one.why_not} for one in self.alternatives
            ],
            "outcome": self.outcome or None,
        }
