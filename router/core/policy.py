"""What the router aims at and how far it goes: every number that decisions depend on, in one place.

The shell makes a Policy from the router's configuration; tests make their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ClassPolicy:
    """A class of requests: its targets, and its share when the cluster is short of capacity."""

    name: str = "default"
    ttft_s: float = 0.5
    itl_s: float = 0.04
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """A tenant's share among tenants of its class, and its limit in tokens (prompt and answer)."""

    weight: float = 1.0
    tokens_per_s: float | None = None  # None: no limit
    burst_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Policy:
    """Defaults are for a cluster of any size; only classes and tenants have to be set.

    Attributes:
        classes: strictest first; requests of ranks beyond them are of the last one.
        tenants: by name; others have `any_tenant`.
        queue_limit: requests that may wait.
        patience: a request is shed when it would wait more than so many times its TTFT target.
        prefill_backlog_s: work that may wait at a prefill worker; the rest waits in the router's
            queue, where it can still be put in order. A worker without any always takes one.
        link_backlog_s: as much for state on its way to or from one worker.
        local_prefill_tokens: prompts with no more uncached tokens are read where they are decoded.
        local_prefill_share: and those with no more than this share of their tokens uncached.
        max_retries: attempts of one request that may fail before it does.
        silence_s: an attempt whose workers say nothing for so long, and ten times what was
            expected of them besides, has failed, as long as its state is not at decode.
        report_wait_s: how long a request whose tokens are all there waits for prefill's report.
        migrations_at_once: requests that leave a worker at the same time when it is to be emptied;
            few, so that each pauses for its own state only. 0: answers end where they are.
        migration_least_tokens: an answer that lacks no more is finished where it is.
        migration_growth_s: so long a request decodes on until it has left, at most.
        orphan_grace_s: how long accepted requests wait for a decode worker when there is none.
        breaker_failures: failures in a row after which a worker is left alone for a while,
        breaker_first_s: first for so long,
        breaker_most_s: and twice as long each time, up to this.
        assumed_prefill_tokens_per_s: of a worker that has not measured its own rate.
        index_entries: names of blocks and states that the prefix index may hold.
        history: ended requests that can still be explained.
    """

    classes: tuple[ClassPolicy, ...] = (ClassPolicy(),)
    tenants: Mapping[str, TenantPolicy] = field(default_factory=dict)
    any_tenant: TenantPolicy = TenantPolicy()
    queue_limit: int = 1024
    patience: float = 10.0
    prefill_backlog_s: float = 0.25
    link_backlog_s: float = 0.5
    local_prefill_tokens: int = 16
    local_prefill_share: float = 0.1
    max_retries: int = 3
    silence_s: float = 10.0
    report_wait_s: float = 1.0
    migrations_at_once: int = 4
    migration_least_tokens: int = 16
    migration_growth_s: float = 1.0
    orphan_grace_s: float = 120.0
    breaker_failures: int = 3
    breaker_first_s: float = 1.0
    breaker_most_s: float = 30.0
    assumed_prefill_tokens_per_s: float = 10_000.0
    index_entries: int = 1_000_000
    history: int = 1000

    def of_class(self, rank: int) -> ClassPolicy:
        """The class of a rank."""
        return self.classes[min(rank, len(self.classes) - 1)]

    def of_tenant(self, tenant: str) -> TenantPolicy:
        """What a tenant may do."""
        return self.tenants.get(tenant, self.any_tenant)
