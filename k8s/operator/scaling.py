"""What the autoscaler wants of a service, as the service's own status holds it.

The autoscaler writes `status.scaling`, both pools in one write, under a field manager of its own.
The operator reads it, keeps to `workers.min` and `workers.max`, and says in `status.decision` which
decision it has acted on. So the spec stays the user's, an operator that starts again finds the
sizes where they were, and what was decided can be read without the process that decided it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from k8s.operator.objects import Manifest, at, condition, mapping, number, sequence, text
from k8s.operator.observed import addresses_of, label
from k8s.operator.service import LABEL_REVISION, ROLES, Role, Service

FIELD_MANAGER = "tandem-autoscaler"
_KEPT = 8  # decisions; the status is read and sent whole
_PREFIX = "scale-"


def wanted(resource: Manifest) -> dict[Role, int]:
    """How many workers the autoscaler asks for; a role that it said nothing of is not in it."""
    counts = mapping(resource, "status", "scaling", "workers")
    return {role: number(counts, role) for role in ROLES if role in counts}


def decisions(resource: Manifest) -> Sequence[object]:
    """What was decided of late, the newest last."""
    return sequence(resource, "status", "scaling", "decisions")


def is_there(resource: Manifest) -> bool:
    """Whether an autoscaler has written anything."""
    return at(resource, "status", "scaling") is not None


def askable(pods: Sequence[Manifest]) -> list[str]:
    """gRPC addresses of the routers that know what an autoscaler has to be told.

    None while an upgrade is under way: routers of two revisions know two pools, and what both have
    together is no size that one of them should get.
    """
    if len({label(pod, LABEL_REVISION) for pod in pods}) != 1:
        return []
    ready = [
        pod
        for pod in pods
        if condition(pod, "Ready") == "True" and not text(pod, "metadata", "deletionTimestamp")
    ]
    return addresses_of(ready)


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """A decision as the status holds it; `lines` are its whole story, for people."""

    number: int
    at: str
    reason: str
    summary: str
    outcome: str
    before: Mapping[Role, int]
    after: Mapping[Role, int]
    lines: tuple[str, ...]

    def document(self) -> dict[str, object]:
        return {
            "id": f"{_PREFIX}{self.number}",
            "at": self.at,
            "reason": self.reason,
            "summary": self.summary,
            "outcome": self.outcome,
            "before": dict(self.before),
            "after": dict(self.after),
            "lines": list(self.lines),
        }


class Pools:
    """A service's pools as its autoscaler works on them: it holds what has yet to be written."""

    def __init__(
        self, resource: Manifest, service: Service, routers: Callable[[], Sequence[str]]
    ) -> None:
        """`routers` gives the addresses of those that can be asked; it may block and raise
        ApiError."""
        self.service = service
        self.routers = routers
        self._wanted = wanted(resource) if service.spec.autoscaling.mode == "active" else {}
        self._rows: list[object] = list(decisions(resource))[-_KEPT:]
        self.last_number = max((_number(row) for row in self._rows), default=0)
        self._unwritten = False

    def counts(self) -> dict[Role, int]:
        """How many workers each pool is meant to have."""
        return {role: self.service.bounded(role, self._wanted.get(role, 0)) for role in ROLES}

    def want(self, counts: Mapping[Role, int]) -> None:
        """Have pools be given so many workers; roles that are not named keep theirs."""
        self._wanted = {**self.counts(), **counts}
        self._unwritten = True

    def note(self, row: DecisionRow) -> None:
        """Keep a decision, in place of what was said of it before."""
        document = row.document()
        self._rows = [one for one in self._rows if text(one, "id") != document["id"]]
        self._rows = [*self._rows, document][-_KEPT:]
        self._unwritten = True

    def take_unwritten(self) -> dict[str, object] | None:
        """`status.scaling` as it is to be; None when it is so already."""
        if not self._unwritten:
            return None
        self._unwritten = False
        scaling: dict[str, object] = {"decisions": self._rows}
        if self._wanted:
            scaling["workers"] = dict(self._wanted)
        return scaling

    def not_written(self) -> None:
        """The server did not take it."""
        self._unwritten = True


def _number(row: object) -> int:
    number = text(row, "id").removeprefix(_PREFIX)
    return int(number) if number.isdecimal() else 0
