"""From pydantic's JSON schema to the structural OpenAPI v3 that the API server takes.

A structural schema has no `$ref`, no `anyOf` that chooses a type, and `exclusiveMinimum` as a flag.
Defaults of nested objects are `{}`, so that the server fills in their own fields.
Source: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

Schema = dict[str, object]

_KEPT = (
    "description",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minimum",
    "maximum",
)


class NotStructuralError(ValueError):
    """A field whose type no structural schema can say; names the field."""


def structural(schema: Mapping[str, object], defaults: object) -> Schema:
    """The structural form of a pydantic model's schema.

    `defaults` is the dump of the model's default instance: JSON schemas leave out what default
    factories make. Raises NotStructuralError.
    """
    definitions = cast(Mapping[str, Schema], schema.get("$defs", {}))
    return _convert(schema, definitions, defaults, "spec")


def _convert(
    schema: Mapping[str, object], definitions: Mapping[str, Schema], defaults: object, at: str
) -> Schema:
    schema = _resolved(schema, definitions)
    if "anyOf" in schema:
        return _union(schema, definitions, at)
    out: Schema = {key: schema[key] for key in _KEPT if key in schema}
    kind = schema.get("type")
    out["type"] = kind
    if kind == "integer":
        out["format"] = "int64"
    _bounds(schema, out)
    if schema.get("default") is not None:
        out["default"] = schema["default"]
    if kind == "array":
        items = cast(Schema, schema["items"])
        out["items"] = _convert(items, definitions, None, f"{at}[]")
    elif kind == "object":
        _object(schema, definitions, defaults, at, out)
    elif kind not in ("string", "integer", "number", "boolean"):
        raise NotStructuralError(f"{at}: type {kind!r} has no structural form")
    return out


def _resolved(schema: Mapping[str, object], definitions: Mapping[str, Schema]) -> Schema:
    """The schema with its reference replaced; what stands beside the reference wins."""
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return dict(schema)
    beside = {key: value for key, value in schema.items() if key != "$ref"}
    return {**_resolved(definitions[reference.rsplit("/", 1)[-1]], definitions), **beside}


def _union(schema: Schema, definitions: Mapping[str, Schema], at: str) -> Schema:
    options = cast(list[Schema], schema["anyOf"])
    real = [option for option in options if option.get("type") != "null"]
    if len(real) == 1:
        out = _convert(real[0], definitions, None, at)
        if len(real) < len(options):
            out["nullable"] = True
    elif {option.get("type") for option in real} == {"integer", "string"}:
        out = {"x-kubernetes-int-or-string": True}
    else:
        raise NotStructuralError(f"{at}: a choice of {len(real)} types has no structural form")
    if schema.get("default") is not None:
        out["default"] = schema["default"]
    return out


def _bounds(schema: Schema, out: Schema) -> None:
    for name, step in (("Minimum", 1), ("Maximum", -1)):
        bound = schema.get(f"exclusive{name}")
        if bound is None:
            continue
        key = name.lower()
        if schema["type"] == "integer":
            out[key] = cast(int, bound) + step
        else:
            out[key] = bound
            out[f"exclusive{name}"] = True


def _object(
    schema: Schema, definitions: Mapping[str, Schema], defaults: object, at: str, out: Schema
) -> None:
    properties = cast(Mapping[str, Schema], schema.get("properties", {}))
    if not properties:
        values = schema.get("additionalProperties")
        patterns = schema.get("patternProperties")
        if isinstance(patterns, dict) and len(patterns) == 1:
            # Keys by pattern have no structural form: a CEL rule says what they may be.
            (values,) = patterns.values()
        if not isinstance(values, dict):
            raise NotStructuralError(f"{at}: an object needs properties or one type of values")
        out["additionalProperties"] = _convert(values, definitions, None, f"{at}.*")
        return
    required = cast(list[str], schema.get("required", []))
    if required:
        out["required"] = sorted(required)
    converted: dict[str, Schema] = {}
    for name, field in properties.items():
        default = defaults.get(name) if isinstance(defaults, Mapping) else None
        below = _convert(field, definitions, default, f"{at}.{name}")
        if below.get("type") == "object" and name not in required and not below.get("nullable"):
            # Fields of sections have defaults of their own; maps bring what a factory makes.
            below.setdefault("default", {} if "properties" in below else default or {})
        converted[name] = below
    out["properties"] = converted
