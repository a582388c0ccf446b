"""Whether an object is what its kind's real schema says, with no field that the kind lacks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import cast

from jsonschema import Draft202012Validator
from kubernetes import client

_FOLDER = Path(__file__).parent / "schemas"
_FOREIGN = {
    "RayService": "rayservice.json",
    "ServiceMonitor": "servicemonitor.json",
    "PrometheusRule": "prometheusrule.json",
}
# Users write the first, the client of the election the second.
_UNCHECKED = {"TandemService", "Lease"}
_MODELS = {"HorizontalPodAutoscaler": "V2HorizontalPodAutoscaler", "Event": "CoreV1Event"}


def problems_of(manifest: Mapping[str, object]) -> list[str]:
    """Every way in which the object breaks its schema; empty when it fits."""
    kind = str(manifest["kind"])
    if kind in _UNCHECKED:
        return []
    if kind in _FOREIGN:
        return _faults(_foreign(kind), manifest)
    model = getattr(client, _MODELS.get(kind, f"V1{kind}"))
    # Reading drops what the model does not know, so what does not come back was a mistake.
    return _lost(manifest, _written(model.from_dict(dict(manifest))), kind)


def _written(model: object) -> object:
    write = client.ApiClient().sanitize_for_serialization
    return write(model)  # type: ignore[no-untyped-call]


@cache
def _foreign(kind: str) -> Draft202012Validator:
    schema = json.loads((_FOLDER / _FOREIGN[kind]).read_text(encoding="utf-8"))
    return Draft202012Validator(_strict(schema, root=True))


def structural_problems(schema: Mapping[str, object], instance: object) -> list[str]:
    """Faults of an instance by a structural schema, unknown fields included."""
    return _faults(Draft202012Validator(_strict(schema, root=True)), instance)


def _faults(validator: Draft202012Validator, instance: object) -> list[str]:
    errors = validator.iter_errors(instance)
    return [f"{error.json_path}: {error.message[:200]}" for error in errors]


def _strict(schema: object, root: bool = False) -> object:
    """JSON Schema with the meaning that Kubernetes gives to its dialect of OpenAPI v3."""
    if not isinstance(schema, Mapping):
        return schema
    out: dict[str, object] = {}
    for key, value in schema.items():
        if key == "properties":
            out[key] = {name: _strict(field) for name, field in value.items()}
        elif key in ("items", "additionalProperties"):
            out[key] = _strict(value)
        elif key in ("anyOf", "allOf", "oneOf"):
            # Inside these only values are restricted, fields are known already.
            out[key] = value
        elif key == "exclusiveMinimum":
            out[key] = schema["minimum"]
        elif key == "exclusiveMaximum":
            out[key] = schema["maximum"]
        elif key != "default":
            out[key] = value
    if schema.get("x-kubernetes-int-or-string"):
        out["type"] = ["integer", "string"]
    elif schema.get("nullable") and "type" in out:
        out["type"] = [out["type"], "null"]
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in out and not open_ended:
        out["additionalProperties"] = False
        if root:
            known = cast(dict[str, object], out["properties"])
            known.setdefault("metadata", {"type": "object"})
    return out


def _lost(before: object, after: object, at: str) -> list[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return [
            problem
            for key, value in before.items()
            for problem in (
                _lost(value, after[key], f"{at}.{key}")
                if key in after
                else ([f"{at}.{key}: unknown field"] if value not in (None, {}, []) else [])
            )
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [
            problem
            for index, pair in enumerate(zip(before, after, strict=True))
            for problem in _lost(*pair, f"{at}[{index}]")
        ]
    if isinstance(before, str) and before.endswith("Z"):
        before = f"{before[:-1]}+00:00"  # how the client writes the time that it read
    return [] if before == after else [f"{at}: {before!r} became {after!r}"]
