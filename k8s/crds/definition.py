"""The whole CustomResourceDefinition: the generated spec, its rules, the status and the columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from k8s.crds.rules import RULES, TEXTS, WITHOUT_DEFAULT
from k8s.crds.status import STATUS
from k8s.crds.structural import Schema, structural
from orchestrator.spec import ClusterSpec

GROUP = "tandem.dev"
VERSION = "v1alpha1"
KIND = "TandemService"
PLURAL = "tandemservices"

_COLUMNS = (
    ("Phase", ".status.phase", "string"),
    ("Prefill", ".status.prefill.summary", "string"),
    ("Decode", ".status.decode.summary", "string"),
    ("Ratio", ".status.ratio", "string"),
    ("Goodput", ".status.goodput", "string"),
    ("Age", ".metadata.creationTimestamp", "date"),
)


def spec_schema() -> Schema:
    """The structural schema of ClusterSpec with its patterns and rules."""
    spec = structural(ClusterSpec.model_json_schema(), ClusterSpec().model_dump(mode="json"))
    # A model is a resource of its own there.
    del cast(dict[str, Schema], spec["properties"])["more_models"]
    for path in WITHOUT_DEFAULT:
        del _at(spec, path)["default"]
    for field, limits in TEXTS.items():
        _at(spec, field).update(limits)
    for rule in RULES:
        if rule.path:
            _add_rule(_at(spec, rule.path[1:]), rule.rule, rule.message)
    spec["default"] = {}
    _complete_defaults(spec)
    return spec


def _complete_defaults(schema: Schema) -> dict[str, object]:
    """Have the default of each section name all that its fields default to; returns that.

    The server fills in what is missing below a default by itself, but it checks the rules of a
    section against the section's default as it stands.
    """
    complete: dict[str, object] = {}
    for name, field in cast(Mapping[str, Schema], schema.get("properties", {})).items():
        if "properties" in field:
            below = _complete_defaults(field)
            if "default" in field:
                field["default"] = below
        if "default" in field:
            complete[name] = field["default"]
    if "default" in schema and "properties" in schema:
        schema["default"] = complete
    return complete


def definition() -> Schema:
    """The manifest that the API server takes."""
    root: Schema = {
        "type": "object",
        "description": "One model served from a prefill pool and a decode pool.",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec_schema(),
            "status": STATUS,
        },
    }
    for rule in RULES:
        if not rule.path:
            _add_rule(root, rule.rule, rule.message)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["tds"],
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": root},
                    "additionalPrinterColumns": [
                        {"name": name, "jsonPath": path, "type": kind}
                        for name, path, kind in _COLUMNS
                    ],
                    # One resource has one scale subresource, and decode is what answers are
                    # made by; the prefill pool is patched (docs/kubernetes.md).
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.decode.workers.min",
                            "statusReplicasPath": ".status.decode.ready",
                            "labelSelectorPath": ".status.decode.selector",
                        },
                    },
                }
            ],
        },
    }


def _add_rule(schema: Schema, rule: str, message: str) -> None:
    rules = cast(list[Schema], schema.setdefault("x-kubernetes-validations", []))
    rules.append({"rule": rule, "message": message})


def _at(schema: Schema, path: tuple[str, ...]) -> Schema:
    for name in path:
        if name == "*":
            schema = cast(Schema, schema["additionalProperties"])
        else:
            schema = cast(dict[str, Schema], schema["properties"])[name]
    return schema
