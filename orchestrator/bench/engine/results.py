"""Everything one bench found, and the document that it prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from orchestrator.bench.engine.comparisons import Comparison
from orchestrator.bench.engine.prefix import PrefixResult
from orchestrator.bench.engine.settings import Settings
from orchestrator.bench.engine.speeds import SpeedRow, SpeedTable
from orchestrator.bench.engine.steps import OverheadResult, RooflineResult
from orchestrator.bench.targets import Target, rows

SHIPPED = "shipped"
PAIR = "pair"
HYBRID = "100M hybrid"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Which model a title stands for."""

    title: str
    path: str
    layers: str
    parameters: int
    prompts: str


@dataclass(slots=True)
class Findings:
    """Filled measurement by measurement; what was not measured stays empty.

    `tables` and `prefill` are by the model's title.
    """

    models: list[ModelFacts] = field(default_factory=list)
    tables: dict[str, SpeedTable] = field(default_factory=dict)
    prefill: dict[str, Comparison] = field(default_factory=dict)
    mixed: Comparison | None = None
    prefix: PrefixResult | None = None
    roofline: list[RooflineResult] = field(default_factory=list)
    overhead: OverheadResult | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> list[SpeedRow]:
        """The rows of all tables."""
        return [row for table in self.tables.values() for row in table.rows]


def document(
    settings: Settings,
    findings: Findings,
    targets: list[Target],
    machine: dict[str, object],
    seconds: float,
) -> dict[str, object]:
    """What `--json` prints."""
    return {
        "bench": "engine",
        "settings": {
            "model": str(settings.model),
            "against": list(settings.against),
            "batch": list(settings.batches),
            "isl": settings.isl,
            "osl": settings.osl,
            "draft_tokens": list(settings.draft_tokens),
            "only": sorted(settings.only),
            "rounds": settings.rounds,
            "quick": settings.quick,
        },
        "seconds": round(seconds, 1),
        "models": [asdict(model) for model in findings.models],
        "cases": [asdict(row) for row in findings.rows],
        "prefill": [asdict(one) for one in findings.prefill.values()],
        "mixed": asdict(findings.mixed) if findings.mixed else None,
        "prefix": asdict(findings.prefix) if findings.prefix else None,
        "roofline": [asdict(one) for one in findings.roofline],
        "overhead": asdict(findings.overhead) if findings.overhead else None,
        "targets": rows(targets),
        "machine": machine,
    }
