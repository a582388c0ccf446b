"""`tandem up`: a cluster in the foreground until somebody stops it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.signals import StopSignals
from orchestrator.cli.terminal import note, progress
from orchestrator.errors import UserError

if TYPE_CHECKING:
    from orchestrator.runtime.cluster import LocalCluster, StopReport
    from orchestrator.spec import ClusterSpec

_WATCH_S = 1.0

# Each flag is a view of one key of the spec.
_FLAGS = {
    "model.path": "--model",
    "model.name": "--model-name",
    "model.dtype": "--dtype",
    "store": "--store",
    "prefill.workers": "--prefill-workers",
    "decode.workers": "--decode-workers",
    "router.grpc": "--grpc",
    "router.http": "--http",
    "router.processes": "--routers",
    "telemetry.otlp": "--otlp",
    "telemetry.trace_file": "--trace-file",
}


def up(
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="The spec of the cluster, in YAML.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint folder.")] = None,
    model_name: Annotated[str | None, typer.Option(help="Name that clients use.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    grpc: Annotated[str | None, typer.Option(help="Where gRPC clients connect, host:port.")] = None,
    http: Annotated[str | None, typer.Option(help="Where HTTP clients connect, host:port.")] = None,
    routers: Annotated[
        int | None, typer.Option(min=1, help="Router processes that share the ports.")
    ] = None,
    prefill_workers: Annotated[
        int | None, typer.Option(help="Workers that read prompts; 0 lets decode workers read.")
    ] = None,
    decode_workers: Annotated[int | None, typer.Option(help="Workers that write answers.")] = None,
    store: Annotated[str | None, typer.Option(help="embedded, or redis://host:port/db.")] = None,
    otlp: Annotated[str | None, typer.Option(help="OTLP endpoint that spans go to.")] = None,
    trace_file: Annotated[str | None, typer.Option(help="File that spans go to.")] = None,
) -> None:
    """Start a cluster and stay in the foreground; Ctrl-C stops it."""
    from orchestrator.spec import load_spec, refuse_unbuilt

    overrides: dict[str, object] = {
        "model.path": model,
        "model.name": model_name,
        "model.dtype": dtype,
        "store": store,
        "prefill.workers": _fixed(prefill_workers),
        "decode.workers": _fixed(decode_workers),
        "router.grpc": grpc,
        "router.http": http,
        "router.processes": routers,
        "telemetry.otlp": otlp,
        "telemetry.trace_file": trace_file,
    }
    given = {key: value for key, value in overrides.items() if value is not None}
    flags = {key: flag for key, flag in _FLAGS.items() if key in given}
    spec = load_spec(file, given, flags)
    refuse_unbuilt(spec, flags)
    if "kubernetes" in spec.model_fields_set:
        note("kubernetes: only the operator reads this section; `tandem up` ignores it")
    _run(spec)


def _fixed(workers: int | None) -> dict[str, int] | None:
    return None if workers is None else {"min": workers, "max": max(workers, 1)}


def _run(spec: ClusterSpec) -> None:
    from orchestrator.runtime.child import Interrupted
    from orchestrator.runtime.cluster import LocalCluster

    began = time.monotonic()
    cluster = LocalCluster(spec)
    with StopSignals() as signals:
        try:
            with progress() as report:
                cluster.start(report, signals.requested)
            for line in _welcome(cluster, time.monotonic() - began):
                print(line, flush=True)
            _watch(cluster, signals)
        except Interrupted:
            pass
        finally:
            with progress() as report:
                stopped = cluster.stop(report)
            if stopped.processes:
                print(stop_summary(stopped), flush=True)
    if stopped.left_behind:
        raise typer.Exit(1)


def stop_summary(stopped: StopReport) -> str:
    """One sentence about what a stop found."""
    if stopped.left_behind:
        return f"stopped, but still running: {', '.join(stopped.left_behind)}"
    forced = ", ".join(stopped.ended_by_force)
    killed = f" ({forced} had to be killed)" if forced else ""
    return f"stopped: {stopped.processes} processes ended, none left behind{killed}"


def _welcome(cluster: LocalCluster, seconds: float) -> Iterable[str]:
    spec, endpoints = cluster.spec, cluster.endpoints
    assert endpoints is not None
    for one in spec.by_model():
        prefill, decode = one.prefill.workers.min, one.decode.workers.min
        yield (
            f"Tandem serves {one.model.name} with {prefill} prefill and {decode} decode "
            f"worker{'s' if decode > 1 else ''} (ready after {seconds:.1f} s)"
        )
    yield f"  gRPC  {endpoints.grpc}"
    scheme = "http" if spec.security.tls is None else "https"
    yield f"  HTTP  {scheme}://{endpoints.http}/v1"
    yield f"  logs  {cluster.log_dir}"
    yield "Try in another terminal:"
    yield '  tandem generate "The Python programming language" --max-tokens 40'
    yield "  tandem status"
    url = f"{scheme}://{endpoints.http}/v1/completions"
    yield f"  curl {url} -H 'Content-Type: application/json' \\"
    yield f'    -d \'{{"model": "{spec.model.name}", "prompt": "The", "max_tokens": 40}}\''
    yield '  grpcurl -plaintext -d \'{"text": "The", "sampling": {"max_tokens": 40}}\' \\'
    yield f"    {endpoints.grpc} tandem.v1.Inference/Generate"
    yield "Ctrl-C here, or `tandem down` elsewhere, stops it."
    for name, address in (("gRPC", endpoints.grpc), ("HTTP", endpoints.http)):
        if not _is_loopback(address) and spec.security.api_keys is None:
            yield f"Note: {name} at {address} answers anyone who can reach this machine."


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")


def _watch(cluster: LocalCluster, signals: StopSignals) -> None:
    """Until a stop is asked for, say which workers come and go. Raises UserError on an end."""
    from orchestrator.client import Client

    assert cluster.endpoints is not None
    known: dict[str, str] = {}
    with Client(cluster.endpoints.local) as client:
        while not signals.wait(_WATCH_S):
            cluster.tend()
            try:
                status = client.status()
            except UserError:
                # Its process lives, so it is busy or about to end; the next look will tell.
                continue
            workers = {w.worker_id: w.address for w in status.workers if w.connected}
            if known:
                _report_changes(known, workers)
            known = workers


def _report_changes(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    for worker_id in before.keys() - after.keys():
        note(f"worker {worker_id} has gone")
    for worker_id in after.keys() - before.keys():
        note(f"worker {worker_id} has joined at {after[worker_id]}")
