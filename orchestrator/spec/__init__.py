"""The one spec: what `tandem up -f` reads, what the operator applies, where flags get defaults."""

from orchestrator.spec.errors import SpecError
from orchestrator.spec.kubernetes import KubernetesSpec, WorkerPods
from orchestrator.spec.loading import dump_spec, load_spec, validated
from orchestrator.spec.schema import (
    AutoscalingSpec,
    ClassSpec,
    ClusterSpec,
    DecodeLayout,
    DecodePool,
    ModelSpec,
    PrefillLayout,
    PrefillPool,
    Resources,
    RouterSpec,
    SecuritySpec,
    TelemetrySpec,
    TlsSpec,
    WorkerRange,
)
from orchestrator.spec.unbuilt import refuse_unbuilt

__all__ = [
    "AutoscalingSpec",
    "ClassSpec",
    "ClusterSpec",
    "DecodeLayout",
    "DecodePool",
    "KubernetesSpec",
    "ModelSpec",
    "PrefillLayout",
    "PrefillPool",
    "Resources",
    "RouterSpec",
    "SecuritySpec",
    "SpecError",
    "TelemetrySpec",
    "TlsSpec",
    "WorkerPods",
    "WorkerRange",
    "dump_spec",
    "load_spec",
    "refuse_unbuilt",
    "validated",
]
