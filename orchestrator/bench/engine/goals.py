"""What the native engine is to reach, and whether the findings of a bench show it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from orchestrator.bench.engine.comparisons import Comparison
from orchestrator.bench.engine.results import HYBRID, PAIR, SHIPPED, Findings
from orchestrator.bench.engine.settings import NO_EXPERTS_IN_VLLM, PEERS, Settings
from orchestrator.bench.engine.speeds import SpeedTable
from orchestrator.bench.engine.steps import OVERHEAD_BATCH, ROOFLINE_BATCHES
from orchestrator.bench.targets import Goal, Target, better_peer, judged

# The lengths that goals are stated for.
_ISL, _OSL = 128, 64
_BATCHES = (1, 8, 32)
_LARGER_BATCHES = (8, 32)
_DRAFT_TOKENS = 3
_NAMES = {SHIPPED: "shipped model", PAIR: "pair without experts", HYBRID: "100 M hybrid"}


def native_name(draft_tokens: int) -> str:
    """What our own contender is called at a forced number of draft tokens."""
    return f"native k={draft_tokens}"


def judge(settings: Settings, findings: Findings) -> list[Target]:
    """A row for each goal, whether or not it was measured."""
    return list(_Judge(settings, findings).targets())


@dataclass(frozen=True, slots=True)
class _Judge:
    settings: Settings
    findings: Findings

    def targets(self) -> Iterator[Target]:
        for batch in _BATCHES:
            goal = Goal(f"shipped model, decode over transformers, batch {batch}", 2.0, "x")
            yield self._over_peers(goal, "shipped", SHIPPED, batch, ["transformers"])
        for batch in _LARGER_BATCHES:
            goal = Goal(f"pair without experts, decode over vLLM, batch {batch}", 2.0, "x")
            yield self._over_peers(goal, "pair", PAIR, batch, ["vllm"])
        for batch in _LARGER_BATCHES:
            goal = Goal(f"100 M hybrid, decode over the better peer, batch {batch}", 1.2, "x")
            yield self._over_peers(goal, "hybrid", HYBRID, batch, ["transformers", "vllm"])
        yield from self._roofline()
        yield from self._prefill()
        yield self._mixed()
        yield self._drafts()
        yield self._prefix()
        yield self._overhead()

    def _over_peers(
        self, goal: Goal, measurement: str, title: str, batch: int, peers: list[str]
    ) -> Target:
        """Decode of our best forced draft length over the better of some peers."""
        table = self.findings.tables.get(title)
        if table is None or batch not in self.settings.batches:
            return judged(goal, None, self._unasked(measurement), self._without_batch(batch))
        ratios = {peer: self._best_ratio(table, batch, peer) for peer in peers}
        reasons = {peer: table.why(batch, peer) or self._unwanted(peer) for peer in peers}
        ours = [why for name in self._natives(table, batch) if (why := table.why(batch, name))]
        value, doubt = better_peer(ratios, reasons)
        return judged(goal, value, *ours, doubt, unfit=self._unfit(lengths=True))

    def _natives(self, table: SpeedTable, batch: int) -> list[str]:
        names = map(native_name, self.settings.draft_tokens)
        return [name for name in names if (batch, name) in table.outcomes]

    def _best_ratio(self, table: SpeedTable, batch: int, peer: str) -> float | None:
        names = self._natives(table, batch)
        ratios = (table.decode_ratio(batch, name, peer) for name in names)
        return max((ratio for ratio in ratios if ratio is not None), default=None)

    def _roofline(self) -> Iterator[Target]:
        found = {one.batch: one for one in self.findings.roofline}
        for batch in ROOFLINE_BATCHES:
            goal = Goal(f"100 M hybrid, share of the roofline, batch {batch}", 70.0, "%")
            one = found.get(batch)
            share = None if one is None or one.share is None else one.share * 100.0
            why = self._unasked("roofline") if one is None else one.why
            yield judged(goal, share, why, unfit=self._unfit())

    def _prefill(self) -> Iterator[Target]:
        for title, name in _NAMES.items():
            goal = Goal(f"{name}, prefill of 512 tokens over the better peer", 1.5, "x")
            one = self.findings.prefill.get(title)
            if one is None:
                yield judged(goal, None, self._unasked("prefill"))
                continue
            # Where vLLM cannot run the model at all, the better peer is the other one.
            ratios: dict[str, float | None] = {
                peer: one.ratios.get(peer)
                for peer in PEERS
                if one.reasons.get(peer) != NO_EXPERTS_IN_VLLM
            }
            reasons: dict[str, str] = {
                peer: one.reasons.get(peer) or self._unwanted(peer) for peer in PEERS
            }
            value, doubt = better_peer(ratios, reasons)
            yield judged(goal, value, *_own(one), doubt, unfit=self._unfit())

    def _mixed(self) -> Target:
        goal = Goal("mixed answers, throughput over transformers in static batches", 2.5, "x")
        one = self.findings.mixed
        if one is None:
            return judged(goal, None, self._unasked("mixed"))
        value, doubt = better_peer(one.ratios, one.reasons)
        return judged(goal, value, *_own(one), doubt, unfit=self._unfit())

    def _drafts(self) -> Target:
        goal = Goal("shipped model, decode at k = 3 over k = 0, batch 1", 1.3, "x")
        table = self.findings.tables.get(SHIPPED)
        drafted, plain = native_name(_DRAFT_TOKENS), native_name(0)
        if table is None or 1 not in self.settings.batches:
            return judged(goal, None, self._unasked("shipped"), self._without_batch(1))
        missing = [name for name in (drafted, plain) if (1, name) not in table.outcomes]
        doubts = [f"{name} was not measured" for name in missing]
        value = table.decode_ratio(1, drafted, plain)
        reasons = (table.why(1, drafted), table.why(1, plain))
        return judged(goal, value, *doubts, *reasons, unfit=self._unfit(lengths=True))

    def _prefix(self) -> Target:
        goal = Goal("TTFT without over with a cached prefix, 1,800 of 2,000 tokens", 5.0, "x")
        one = self.findings.prefix
        if one is None:
            return judged(goal, None, self._unasked("prefix"))
        return judged(goal, one.speedup, one.why, unfit=self._unfit())

    def _overhead(self) -> Target:
        name = f"100 M hybrid, time outside torch operations, batch {OVERHEAD_BATCH}"
        goal = Goal(name, 15.0, "% of a step", "<")
        one = self.findings.overhead
        if one is None:
            return judged(goal, None, self._unasked("overhead"))
        share = None if one.outside_share is None else one.outside_share * 100.0
        return judged(goal, share, one.why, unfit=self._unfit())

    def _unasked(self, measurement: str) -> str | None:
        if self.settings.wants(measurement):
            return None
        return f"--only leaves {measurement} out"

    def _without_batch(self, batch: int) -> str | None:
        return None if batch in self.settings.batches else f"--batch leaves {batch} out"

    def _unwanted(self, peer: str) -> str:
        return "not measured" if peer in self.settings.against else "--against leaves it out"

    def _unfit(self, *, lengths: bool = False) -> str | None:
        """Why figures of this bench cannot be held against the goals."""
        if self.settings.quick:
            return "--quick measures too little to judge by"
        if lengths and (self.settings.isl, self.settings.osl) != (_ISL, _OSL):
            return f"the goal is for --isl {_ISL} --osl {_OSL}"
        return None


def _own(one: Comparison) -> Iterable[str]:
    """Why our own contender failed, if it did."""
    return (why for name, why in one.reasons.items() if name not in one.ratios)
