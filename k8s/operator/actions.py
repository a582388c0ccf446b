"""What a reconcile may ask of the shell, and which objects have to be written at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from k8s.operator.objects import Key, Manifest, holds, key_of, mapping, text
from k8s.operator.observed import Observed, generation
from k8s.operator.service import APPLIED


@dataclass(frozen=True, slots=True)
class Apply:
    """Have the server hold this, by server-side apply."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Delete:
    """Have the server remove this; it may be gone already."""

    key: Key


@dataclass(frozen=True, slots=True)
class SetFinalizers:
    """Replace the finalizers of the service, unless it has changed since it was read."""

    finalizers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WriteStatus:
    """Replace the status of the service."""

    status: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ForgetScaling:
    """Take back what an autoscaler wrote that does not act any more."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell people by an Event."""

    kind: str  # Normal | Warning
    reason: str
    message: str


Action = Apply | Delete | SetFinalizers | WriteStatus | ForgetScaling | Announce


def applies(wanted: Iterable[Manifest], observed: Observed) -> list[Action]:
    """Writes for what is missing, out of date, or was changed by others."""
    return [
        Apply(manifest)
        for manifest in wanted
        if key_of(manifest).kind not in observed.missing_kinds and _differs(manifest, observed)
    ]


def _differs(wanted: Manifest, observed: Observed) -> bool:
    key = key_of(wanted)
    found = observed.objects.get(key)
    if found is None:
        return True
    if _applied(found) != _applied(wanted):
        return True
    if observed.settled.get(key) == generation(found):
        return False
    content = {name: part for name, part in wanted.items() if name != "metadata"}
    labels = mapping(wanted, "metadata", "labels")
    return not (holds(found, content) and holds(mapping(found, "metadata", "labels"), labels))


def _applied(manifest: Manifest) -> str:
    return text(manifest, "metadata", "annotations", APPLIED)
