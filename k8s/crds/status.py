"""The schema of what the operator reports: phase, pools, conditions."""

from __future__ import annotations

from k8s.crds.structural import Schema

_TIME: Schema = {"type": "string", "format": "date-time"}
_COUNT: Schema = {"type": "integer", "format": "int64", "minimum": 0}

_CONDITION: Schema = {
    "type": "object",
    "required": ["type", "status", "reason", "message", "lastTransitionTime"],
    "properties": {
        "type": {"type": "string", "maxLength": 316},
        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
        "reason": {"type": "string", "minLength": 1, "maxLength": 1024},
        "message": {"type": "string", "maxLength": 32768},
        "observedGeneration": _COUNT,
        "lastTransitionTime": _TIME,
    },
}


def _pool(role: str) -> Schema:
    return {
        "type": "object",
        "description": f"The {role} workers.",
        "properties": {
            "desired": {**_COUNT, "description": "Workers that there should be."},
            "ready": {**_COUNT, "description": "Workers that are healthy."},
            "summary": {"type": "string", "description": "ready/desired, for people."},
            "selector": {"type": "string", "description": "Labels of the pool's pods."},
        },
    }


_COUNTS: Schema = {
    "type": "object",
    "properties": {"prefill": _COUNT, "decode": _COUNT},
}
_SCALING: Schema = {
    "type": "object",
    "description": "What the autoscaler wants; written by it alone.",
    "properties": {
        "workers": {
            **_COUNTS,
            "description": "That pools are to have, within workers.min and max; mode active.",
        },
        "decisions": {
            "type": "array",
            "description": "Those of late, the newest last.",
            "maxItems": 32,
            "items": {
                "type": "object",
                "properties": {
                    "id": {"type": "string"},
                    "at": _TIME,
                    "reason": {"type": "string"},
                    "summary": {"type": "string"},
                    "outcome": {"type": "string"},
                    "before": _COUNTS,
                    "after": _COUNTS,
                    "lines": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
    },
}

STATUS: Schema = {
    "type": "object",
    "description": "What the operator last saw; written by it, but for scaling.",
    "properties": {
        "phase": {
            "type": "string",
            "description": "The conditions in one word.",
            "enum": ["Pending", "Progressing", "Ready", "Degraded", "Draining", "Invalid"],
        },
        "observedGeneration": _COUNT,
        "revision": {"type": "string", "description": "Of the pool that serves; empty: none."},
        "prefill": _pool("prefill"),
        "decode": _pool("decode"),
        "ratio": {"type": "string", "description": "Ready prefill : decode workers."},
        "goodput": {
            "type": "string",
            "description": "Requests a second that met both of their targets, of late.",
        },
        "scaling": _SCALING,
        "decision": {
            "type": "string",
            "description": "The last one of scaling.decisions that the operator has acted on.",
        },
        "endpoint": {"type": "string", "description": "host:port of the OpenAI API."},
        "startingSince": {**_TIME, "description": "When the pool began that is starting."},
        "drain": {
            "type": "object",
            "description": "The drain before a deletion.",
            "properties": {"since": _TIME, "inFlight": {"type": "string"}},
        },
        "conditions": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
            "items": _CONDITION,
        },
    },
}
