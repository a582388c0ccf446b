"""The status of a service: phase, pools and conditions, with transition times that hold still."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from k8s.operator.objects import Manifest, mapping, sequence, text

_AUTOSCALERS = "scaling"
TYPES = ("Ready", "Progressing", "Degraded", "Draining", "SafeToDelete")


@dataclass(frozen=True, slots=True)
class Condition:
    """One answer with its reason; `value` None is Unknown."""

    type: str
    value: bool | None
    reason: str
    message: str

    @property
    def status(self) -> str:
        return "Unknown" if self.value is None else str(self.value)


def timestamp(now: datetime) -> str:
    """RFC 3339 in whole seconds, as the API server writes it."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_since(stamp: str, now: datetime) -> float:
    """Seconds from a timestamp to now; 0 for none."""
    if not stamp:
        return 0.0
    return (now - datetime.fromisoformat(stamp.replace("Z", "+00:00"))).total_seconds()


def conditions(
    found: Sequence[Condition], before: Manifest, generation: int, now: datetime
) -> list[dict[str, object]]:
    """The list as the API has it; a transition time changes with the status alone."""
    previous = {text(entry, "type"): entry for entry in sequence(before, "status", "conditions")}
    entries = []
    for condition in found:
        was = previous.get(condition.type)
        same = text(was, "status") == condition.status
        entries.append(
            {
                "type": condition.type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message,
                "observedGeneration": generation,
                "lastTransitionTime": text(was, "lastTransitionTime") if same else timestamp(now),
            }
        )
    return entries


def phase(found: Sequence[Condition]) -> str:
    """The conditions in one word, the most pressing first."""
    by_type = {condition.type: condition for condition in found}
    if by_type["Degraded"].value and by_type["Degraded"].reason in ("InvalidSpec", "NotBuilt"):
        return "Invalid"
    if by_type["Draining"].value and by_type["Draining"].reason == "Deleting":
        return "Draining"
    if by_type["Degraded"].value:
        return "Degraded"
    if by_type["Progressing"].value:
        return "Progressing"
    return "Ready" if by_type["Ready"].value else "Pending"


def reason_before(before: Manifest, kind: str) -> str:
    """The reason that a condition had, with its status: Degraded/True/PoolFailed."""
    for entry in sequence(before, "status", "conditions"):
        if text(entry, "type") == kind:
            return f"{text(entry, 'status')}/{text(entry, 'reason')}"
    return ""


def own(before: Manifest) -> dict[str, object]:
    """The status that is there, without what the autoscaler writes into it."""
    return {name: part for name, part in mapping(before, "status").items() if name != _AUTOSCALERS}


def changed(before: Manifest, status: Mapping[str, object]) -> bool:
    """Whether the status says something else than the one that is there."""
    return own(before) != dict(status)
