"""Which workers can serve both roles, so that one can change without loading its weights anew.

The weights and the memory of a worker are sharded for its layout and stay where they are. A flip
is possible exactly where both pools shard alike: a prefill worker with `tp` n and a decode worker
with kvp 1, tpa n, ep 1, tpf n, or a single rank. With KVP above 1 tokens of the KV are spread
over ranks, which is no way to read a prompt.
"""

from __future__ import annotations

from dataclasses import replace

from workers.config import WorkerConfig
from workers.parallel.layout import ParallelLayout
from workers.registry import Role


def flip_problem(config: WorkerConfig, role: str, layout: str) -> str | None:
    """Why a worker cannot take a role in a pool of that layout; None when it can.

    Args:
        config: of the worker.
        role: prefill or decode.
        layout: of the pool that has the role, as in its workers' records; empty: unknown.
    """
    if role not in ("prefill", "decode"):
        return f"role {role!r}: must be prefill or decode"
    own = _sharding(config)
    if own != ParallelLayout.tensor_parallel(own.size):
        return (
            f"its layout {config.layout} splits the tokens or the experts over ranks; only plain "
            "tensor parallelism (kvp 1, ep 1) serves both roles"
        )
    there = layout_named(layout)
    if layout and there != own:
        return f"its layout is {config.layout}, that of the {role} pool is {layout}"
    return None


def flipped_config(config: WorkerConfig, role: Role) -> WorkerConfig:
    """The config of the worker in its new role: the same ranks under that role's names."""
    ranks = _sharding(config).size
    if role == "prefill":
        return replace(config, role=role, tp=ranks, kvp=1, tpa=1, ep=1, tpf=1)
    return replace(config, role=role, tp=1, kvp=1, tpa=ranks, ep=1, tpf=ranks)


def layout_named(layout: str) -> ParallelLayout | None:
    """What a record's layout says, such as "tp=2" or "kvp=2 tpa=1 ep=2 tpf=1"; None if nothing."""
    try:
        sizes = {
            key: int(size) for key, _, size in (part.partition("=") for part in layout.split())
        }
        if "tp" in sizes:
            return ParallelLayout.tensor_parallel(sizes["tp"])
        return ParallelLayout(**sizes)
    except (TypeError, ValueError):
        return None


def _sharding(config: WorkerConfig) -> ParallelLayout:
    if config.role == "prefill":
        return ParallelLayout.tensor_parallel(config.tp)
    return ParallelLayout(kvp=config.kvp, tpa=config.tpa, tpf=config.tpf, ep=config.ep)
