"""Which running cluster a command means."""

from __future__ import annotations

from orchestrator.errors import UsageError, UserError
from orchestrator.runtime.run_file import RunFiles, RunRecord


def running_cluster(address: str | None) -> RunRecord:
    """The one running cluster of this user, or the one at `address`. Raises UserError."""
    records = RunFiles().running()
    if address is not None:
        records = [record for record in records if record.grpc == address]
    if not records:
        where = f" at {address}" if address is not None else " on this machine"
        raise UserError(f"no cluster is running{where}", "start one with `tandem up`")
    if len(records) > 1:
        found = ", ".join(record.grpc for record in records)
        raise UsageError(
            f"{len(records)} clusters are running: {found}",
            f"choose one, such as --address {records[0].grpc}",
        )
    return records[0]
