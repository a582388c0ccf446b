"""Refuses what the spec can say and this version cannot do.

Kept apart from the schema: whoever builds a feature deletes its lines here and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.spec.errors import SpecError
from orchestrator.spec.schema import ClusterSpec


def refuse_unbuilt(
    spec: ClusterSpec, flags: Mapping[str, str] | None = None, *, operator: bool = False
) -> None:
    """Raise SpecError naming each field, its value, what is built, and what to set instead.

    `flags` gives fields the name of the command-line flag that they were set by; `operator` says
    that the cluster is one of Kubernetes, where each model is a resource of its own.
    """
    names = flags or {}
    problems: list[str] = []
    if operator and spec.more_models:
        problems.append("more_models: each model is a resource of its own; make another one")

    def refuse(field: str, value: object, built: str, instead: object) -> None:
        name = names.get(field, field)
        setting = f"{name} {value}" if name.startswith("--") else f"{name}: {value}"
        fix = f"{name} {instead}" if name.startswith("--") else f"{name}: {instead}"
        problems.append(f"{setting} is not built yet: {built}; set {fix}")

    for number, model in enumerate(spec.by_model()):
        at = f"more_models.{number - 1}." if number else ""
        for role, pool in (("prefill", model.prefill), ("decode", model.decode)):
            if pool.resources.gpu > 1:
                gpus = pool.resources.gpu
                refuse(f"{at}{role}.resources.gpu", gpus, "a rank uses one GPU", 1)
            few, many = pool.workers.min, pool.workers.max
            if at and few not in (0, many):
                built = "the pools of more_models have a fixed size"
                refuse(f"{at}{role}.workers.max", many, built, few)
    for role, pods in (
        ("prefill", spec.kubernetes.prefill.pods_per_worker),
        ("decode", spec.kubernetes.decode.pods_per_worker),
    ):
        if pods != 1:
            refuse(f"kubernetes.{role}.pods_per_worker", pods, "a worker is one pod", 1)
    if spec.more_models and spec.autoscaling.mode != "off":
        mode = spec.autoscaling.mode
        refuse("autoscaling.mode", mode, "more_models have pools of fixed size", '"off"')
    if problems:
        raise SpecError(problems)
