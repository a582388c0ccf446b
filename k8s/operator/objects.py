"""Reading Kubernetes objects: plain JSON, of which any part may be missing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Manifest = Mapping[str, object]
_QUANTITY = re.compile(r"^(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti|)$")
_SCALE = {"m": 0.001, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {
    f"{letter}i": 1024.0 ** (power + 1) for power, letter in enumerate("KMGT")
}


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Which object of a namespace."""

    kind: str
    name: str


def key_of(manifest: Manifest) -> Key:
    return Key(str(manifest["kind"]), text(manifest, "metadata", "name"))


def at(manifest: object, *path: str) -> object:
    """What stands at a path; None where anything on the way is missing."""
    for part in path:
        if not isinstance(manifest, Mapping):
            return None
        manifest = manifest.get(part)
    return manifest


def text(manifest: object, *path: str) -> str:
    found = at(manifest, *path)
    return found if isinstance(found, str) else ""


def number(manifest: object, *path: str) -> int:
    found = at(manifest, *path)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def mapping(manifest: object, *path: str) -> Mapping[str, object]:
    found = at(manifest, *path)
    return found if isinstance(found, Mapping) else {}


def sequence(manifest: object, *path: str) -> Sequence[object]:
    found = at(manifest, *path)
    return found if isinstance(found, list | tuple) else ()


def condition(manifest: object, kind: str) -> str:
    """The status of a condition, or empty."""
    for entry in sequence(manifest, "status", "conditions"):
        if text(entry, "type") == kind:
            return text(entry, "status")
    return ""


def holds(found: object, wanted: object) -> bool:
    """Whether `found` says all that `wanted` says; the server may have added to it.

    Quantities compare by their amount, since the server spells them its own way.
    """
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            holds(found.get(key), value) for key, value in wanted.items()
        )
    if isinstance(wanted, list | tuple):
        return (
            isinstance(found, list | tuple)
            and len(found) == len(wanted)
            and all(holds(one, other) for one, other in zip(found, wanted, strict=True))
        )
    if isinstance(wanted, str) and isinstance(found, str) and wanted != found:
        amount = _amount(wanted)
        return amount is not None and amount == _amount(found)
    # The server drops what is empty.
    return found == wanted or (found is None and wanted in ("", None))


def _amount(quantity: str) -> float | None:
    match = _QUANTITY.match(quantity)
    return float(match[1]) * _SCALE[match[2]] if match else None
