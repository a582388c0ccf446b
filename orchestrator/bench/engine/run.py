"""Runs what a bench of the engine was asked for, model by model."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from orchestrator.bench.engine.comparisons import (
    LONG_PROMPT_TOKENS,
    LONGEST_ANSWER,
    MIXED_REQUESTS,
    SHORTEST_ANSWER,
    compare_mixed,
    compare_prefill,
    mixed_lengths,
)
from orchestrator.bench.engine.goals import native_name
from orchestrator.bench.engine.lineup import Demand, Entry, Lineup, lineup
from orchestrator.bench.engine.prefix import PREFIX_TOKENS, PROMPT_TOKENS, measure_prefix
from orchestrator.bench.engine.results import HYBRID, PAIR, SHIPPED, Findings, ModelFacts
from orchestrator.bench.engine.settings import NO_EXPERTS_IN_VLLM, PEERS, Settings
from orchestrator.bench.engine.speeds import measure_speeds
from orchestrator.bench.engine.steps import (
    OVERHEAD_BATCH,
    ROOFLINE_BATCHES,
    measure_overhead,
    measure_roofline_share,
)
from orchestrator.bench.models import HUNDRED_MILLION, cache_folder, made_model, without_experts
from workers.checkpoint.schema import model_schema, mtp_schema
from workers.config import Dtype
from workers.model.config import ModelConfig

_LEFT_OUT = "--against leaves it out"
_AUTO = "native k=auto"
_PLAIN = native_name(0)
_OVERHEAD_STEPS = 20
_LEAST_STEP_TOKENS = 512
_TABLES = {SHIPPED: "shipped", PAIR: "pair", HYBRID: "hybrid"}  # measurement by model

Report = Callable[[str], None]


def run_engine_bench(settings: Settings, report: Report) -> Findings:
    """Measure everything that the settings want; failures of contenders become reasons."""
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as logs:
        bench = _Bench(settings, Path(logs), report)
        bench.shipped()
        bench.mixed()
        bench.pair()
        bench.hybrid()
        return bench.findings


class _Bench:
    """One method for each model, with all that is measured while its contenders are alive."""

    def __init__(self, settings: Settings, logs: Path, report: Report) -> None:
        self.findings = Findings()
        self._settings = settings
        self._logs = logs
        self._report = report
        self._config = ModelConfig.from_file(settings.model)
        self._dtypes: tuple[Dtype, ...] = (
            ("float32",) if settings.quick else ("float32", "bfloat16")
        )

    def shipped(self) -> None:
        """The model that was given."""
        settings = self._settings
        if not any(map(settings.wants, ("shipped", "prefill", "prefix"))):
            return
        wanted = settings.draft_tokens if settings.wants("shipped") else ()
        drafts = sorted({k for k in wanted if k == 0 or self._config.mtp_layers})
        if settings.wants("prefill") or settings.wants("prefix"):
            drafts = sorted({0, *drafts})
        longest = PROMPT_TOKENS + 2 if settings.wants("prefix") else LONG_PROMPT_TOKENS + 1
        with self._lineup(SHIPPED, settings.model, drafts, longest) as here:
            if settings.wants("shipped"):
                measured = [k for k in drafts if k in settings.draft_tokens]
                self._speeds(here, measured)
            self._prefill(here)
            if settings.wants("prefix"):
                self._report("shipped: a cached prefix")
                self.findings.prefix = measure_prefix(
                    here, _PLAIN, PREFIX_TOKENS, PROMPT_TOKENS, settings.rounds
                )

    def mixed(self) -> None:
        """Mixed answers, with room for all requests at once and drafts as the engine likes."""
        settings = self._settings
        if not settings.wants("mixed"):
            return
        requests = MIXED_REQUESTS // 4 if settings.quick else MIXED_REQUESTS
        longest = LONGEST_ANSWER // 8 if settings.quick else LONGEST_ANSWER
        shortest = SHORTEST_ANSWER // 4 if settings.quick else SHORTEST_ANSWER
        entries = [Entry(_AUTO, "native", "auto"), *self._peer_entries(("transformers",))]
        demand = Demand(requests, settings.isl + longest, requests * settings.isl)
        with self._started(SHIPPED, settings.model, entries, demand) as here:
            self._report("shipped: answers of mixed lengths")
            lengths = mixed_lengths(requests, shortest, longest)
            self.findings.mixed = compare_mixed(here, _AUTO, settings.isl, lengths, settings.rounds)

    def pair(self) -> None:
        """The shipped model's size without experts."""
        settings = self._settings
        if not any(map(settings.wants, ("pair", "prefill"))):
            return
        folder = made_model("pair", without_experts(self._config), cache_folder())
        with self._lineup(PAIR, folder, [0], LONG_PROMPT_TOKENS + 1) as here:
            if settings.wants("pair"):
                self._speeds(here, [0])
            self._prefill(here)

    def hybrid(self) -> None:
        """About 100 M parameters, no experts."""
        settings = self._settings
        wanted = ("hybrid", "prefill", "roofline", "overhead")
        if not any(map(settings.wants, wanted)):
            return
        self._report("writing the 100M hybrid, unless it is there")
        folder = made_model("hybrid-100m", HUNDRED_MILLION, cache_folder())
        with self._lineup(HYBRID, folder, [0], LONG_PROMPT_TOKENS + 1) as here:
            if settings.wants("hybrid"):
                self._speeds(here, [0])
            self._prefill(here)
            if settings.wants("roofline"):
                for batch in ROOFLINE_BATCHES:
                    self._report(f"{HYBRID}: roofline at batch {batch}")
                    result = measure_roofline_share(
                        here, _PLAIN, batch, settings.isl, settings.osl, settings.rounds
                    )
                    self.findings.roofline.append(result)
            if settings.wants("overhead"):
                self._report(f"{HYBRID}: time outside torch operations")
                self.findings.overhead = measure_overhead(
                    here, _PLAIN, OVERHEAD_BATCH, settings.isl, _OVERHEAD_STEPS, settings.rounds
                )

    def _speeds(self, here: Lineup, draft_tokens: Sequence[int]) -> None:
        settings = self._settings
        self.findings.tables[here.title] = measure_speeds(
            here,
            [(native_name(k), k) for k in draft_tokens],
            settings.against,
            settings.batches,
            settings.isl,
            settings.osl,
            settings.rounds,
            self._report,
        )

    def _prefill(self, here: Lineup) -> None:
        settings = self._settings
        if settings.wants("prefill"):
            self._report(f"{here.title}: a prompt of {LONG_PROMPT_TOKENS} tokens")
            self.findings.prefill[here.title] = compare_prefill(
                here, _PLAIN, settings.against, LONG_PROMPT_TOKENS, settings.rounds
            )

    def _lineup(
        self, title: str, model: Path, draft_tokens: Sequence[int], longest_tokens: int
    ) -> AbstractContextManager[Lineup]:
        settings = self._settings
        entries = [Entry(native_name(k), "native", k) for k in draft_tokens]
        if any(map(settings.wants, (_TABLES[title], "prefill"))):
            entries += self._peer_entries(settings.against)
        requests = max(*settings.batches, *ROOFLINE_BATCHES, OVERHEAD_BATCH)
        demand = Demand(
            requests,
            max(settings.isl + settings.osl, longest_tokens),
            max(requests * settings.isl, _LEAST_STEP_TOKENS),
        )
        return self._started(title, model, entries, demand)

    def _peer_entries(self, peers: Sequence[str]) -> list[Entry]:
        wanted = [peer for peer in PEERS if peer in peers and peer in self._settings.against]
        return [Entry(peer, peer) for peer in wanted]

    @contextmanager
    def _started(
        self, title: str, model: Path, entries: Sequence[Entry], demand: Demand
    ) -> Iterator[Lineup]:
        config = ModelConfig.from_file(model)
        absent: dict[str, str] = {
            peer: _LEFT_OUT for peer in PEERS if peer not in self._settings.against
        }
        if config.n_routed_experts and "vllm" not in absent:
            absent["vllm"] = NO_EXPERTS_IN_VLLM
        self._note(title, model, config)
        with lineup(
            title,
            model,
            [entry for entry in entries if entry.name not in absent],
            demand,
            dtypes=self._dtypes,
            absent=absent,
            vllm_python=self._settings.vllm_python,
            logs=self._logs,
            report=self._report,
        ) as here:
            self.findings.versions.update(here.versions)
            yield here

    def _note(self, title: str, model: Path, config: ModelConfig) -> None:
        if any(facts.title == title for facts in self.findings.models):
            return
        schema = model_schema(config) | mtp_schema(config)
        has_text = (model / "tokenizer.json").exists()
        self.findings.models.append(
            ModelFacts(
                title=title,
                path=str(model),
                layers="".join(kind.value for kind in config.layers),
                parameters=sum(math.prod(expected.shape) for expected in schema.values()),
                prompts="text" if has_text else "random tokens",
            )
        )
