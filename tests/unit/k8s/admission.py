"""What the API server does to a TandemService at admission: defaults, types, CEL rules."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from functools import cache
from typing import cast

import celpy
from celpy import celtypes
from celpy.adapter import json_to_cel
from celpy.evaluation import CELFunction

from k8s.crds.definition import definition
from tests.unit.k8s.schemas import structural_problems

Schema = Mapping[str, object]


@cache
def resource_schema() -> Schema:
    """The schema of the whole resource, as the generated definition has it."""
    versions = cast(list[Schema], cast(Schema, definition()["spec"])["versions"])
    return cast(Schema, cast(Schema, versions[0]["schema"])["openAPIV3Schema"])


def admit(spec: Mapping[str, object], name: str = "demo") -> tuple[Schema, list[str]]:
    """The resource with its defaults, and why it is refused; empty when it is not."""
    resource = {"metadata": {"name": name}, "spec": copy.deepcopy(dict(spec))}
    filled = _with_defaults(resource_schema(), resource)
    assert isinstance(filled, dict)
    problems = structural_problems(resource_schema(), filled)
    if not problems:
        # The server evaluates rules only on what has the right types.
        problems = broken_rules(resource_schema(), filled)
    return filled, problems


def _with_defaults(schema: Schema, value: object) -> object:
    if isinstance(value, dict):
        properties = cast(Mapping[str, Schema], schema.get("properties", {}))
        for name, field in properties.items():
            if name not in value and "default" in field:
                value[name] = copy.deepcopy(field["default"])
        for name in value:
            below = properties.get(name) or schema.get("additionalProperties")
            if isinstance(below, dict):
                value[name] = _with_defaults(below, value[name])
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [_with_defaults(cast(Schema, schema["items"]), item) for item in value]
    return value


def broken_rules(schema: Schema, value: object) -> list[str]:
    """Messages of the rules that a value breaks, which has to have the right types."""
    problems = []
    for rule in cast(list[Mapping[str, str]], schema.get("x-kubernetes-validations", [])):
        if not _holds(rule["rule"], value):
            problems.append(rule["message"])
    if isinstance(value, dict):
        properties = cast(Mapping[str, Schema], schema.get("properties", {}))
        for name, field in properties.items():
            if value.get(name) is not None:
                problems += broken_rules(field, value[name])
    return problems


def _holds(rule: str, value: object) -> bool:
    outcome = _program(rule).evaluate({"self": json_to_cel(json.loads(json.dumps(value)))})
    return bool(outcome)


@cache
def _program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    functions: dict[str, CELFunction] = {"split": _split}
    return environment.program(environment.compile(rule), functions=functions)


def _split(text: celtypes.StringType, separator: celtypes.StringType) -> celtypes.ListType:
    """The one function of Kubernetes' own library that the rules use."""
    return celtypes.ListType([celtypes.StringType(part) for part in str(text).split(separator)])


def is_structural(schema: object, at: str = "") -> list[str]:
    """Why the API server would not take the schema as a structural one."""
    if not isinstance(schema, dict):
        return []
    found = []
    for word in ("$ref", "$defs", "anyOf", "oneOf", "allOf", "const", "title", "patternProperties"):
        if word in schema:
            found.append(f"{at}: {word}")
    if "type" not in schema and not schema.get("x-kubernetes-int-or-string"):
        found.append(f"{at}: no type")
    if "properties" in schema and "additionalProperties" in schema:
        found.append(f"{at}: properties and additionalProperties")
    if isinstance(schema.get("exclusiveMinimum"), int | float) and not isinstance(
        schema["exclusiveMinimum"], bool
    ):
        found.append(f"{at}: exclusiveMinimum is a number")
    if isinstance(schema.get("pattern"), str):
        re.compile(schema["pattern"])
    for name, field in schema.get("properties", {}).items():
        found += is_structural(field, f"{at}.{name}")
    for word in ("items", "additionalProperties"):
        if word in schema:
            found += is_structural(schema[word], f"{at}.{word}")
    return found
