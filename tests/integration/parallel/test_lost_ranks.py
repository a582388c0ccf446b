"""A group dies as one: whichever rank is lost, whenever, nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.integration.parallel.groups import Reference, running, worker_config, write_checkpoint
from tests.reference_models import Shape
from workers.engine.commands import Prefill, Sampling, WorkItem
from workers.engine.events import StepEvents
from workers.engine.loop import EngineLoop
from workers.engine.native.engine import NativeEngine
from workers.engine.native.loading import load_native_engine
from workers.parallel.errors import RanksLost
from workers.parallel.layout import ParallelLayout
from workers.parallel.rank import RankSetup
from workers.telemetry import Tracing

_LAYOUT = ParallelLayout(kvp=2, tpa=2, tpf=2, ep=2)
_PAIR = ParallelLayout(kvp=2, ep=2)  # where how many ranks there are shows nothing more
_WAIT_S = 20.0


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("lost") / "model"
    return write_checkpoint(folder, Shape(pattern="M*E", vocab_size=97), (9,), seed=3)


def followers() -> list[psutil.Process]:
    """Ranks 1 to 3 of this process, in the order of their ranks."""
    children = psutil.Process().children()
    return sorted(
        (c for c in children if "workers.parallel.rank" in c.cmdline()), key=lambda c: c.pid
    )


def listening(process: psutil.Process) -> set[str]:
    """Addresses that a process listens on."""
    connections = process.net_connections("tcp")
    return {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}


def prefill(reference: Reference, key: int = 0) -> Prefill:
    prompt = tuple(reference.prompts[0])
    return Prefill(WorkItem(key, "r", Sampling(max_tokens=4000), len(prompt)), prompt, None)


class Watched:
    """An engine in its loop; `tokens` is set when it has made some."""

    def __init__(self, engine: NativeEngine) -> None:
        self.tokens = threading.Event()
        self.loop = EngineLoop(engine, self._see)
        self.loop.start()
        self._running = True

    def stop(self) -> None:
        if self._running:
            self._running = False
            self.loop.stop()

    def _see(self, events: StepEvents) -> None:
        if events.tokens:
            self.tokens.set()


@contextmanager
def watched(reference: Reference, layout: ParallelLayout) -> Iterator[Watched]:
    config = worker_config(reference.folder, layout, 3, kv_tokens=8192, timeout_s=3.0)
    found = Watched(load_native_engine(config, Tracing(None)).engine)
    try:
        yield found
    finally:
        found.stop()


@pytest.mark.parametrize(("rank", "busy"), [(1, False), (3, True)], ids=["idle", "in a step"])
def test_a_killed_rank_ends_the_engine_and_the_other_ranks(
    reference: Reference, rank: int, busy: bool
) -> None:
    with watched(reference, _LAYOUT) as engine:
        ranks = followers()
        if busy:
            engine.loop.post(prefill(reference))
            assert engine.tokens.wait(_WAIT_S)
        ranks[rank - 1].kill()
        assert isinstance(engine.loop.failed.result(_WAIT_S), RanksLost)
        _, alive = psutil.wait_procs(ranks, timeout=_WAIT_S)
        assert not alive


def test_a_rank_that_hangs_is_given_up_after_the_timeout(reference: Reference) -> None:
    with watched(reference, _PAIR) as engine:
        (rank,) = followers()
        engine.loop.post(prefill(reference))
        assert engine.tokens.wait(_WAIT_S)
        rank.suspend()
        error = engine.loop.failed.result(_WAIT_S)
        assert isinstance(error, RanksLost)
        assert "a rank was lost or hangs" in str(error)
    _, alive = psutil.wait_procs([rank], timeout=_WAIT_S)
    assert not alive


def test_a_rank_that_cannot_start_is_reported_and_the_others_end(
    reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = worker_config(reference.folder, _LAYOUT, 0, timeout_s=5.0)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        pytest.raises(RanksLost, match="rank 1 ended with status 1 while starting"),
        running(config),
    ):
        pass


_RANK_0 = """
import sys
from workers.config import WorkerConfig
from workers.engine.native.loading import load_native_engine
from workers.telemetry import Tracing
engine = load_native_engine(WorkerConfig.from_json(sys.stdin.readline()), Tracing(None)).engine
print("running", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_ranks_do_not_outlive_rank_0(reference: Reference, how: signal.Signals) -> None:
    config = worker_config(reference.folder, _PAIR, 0)
    rank_0 = subprocess.Popen(
        [sys.executable, "-c", _RANK_0], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert rank_0.stdin is not None
    assert rank_0.stdout is not None
    rank_0.stdin.write(config.to_json() + "\n")
    rank_0.stdin.flush()
    assert rank_0.stdout.readline() == "running\n"
    ranks = psutil.Process(rank_0.pid).children()
    assert len(ranks) == 1
    os.kill(rank_0.pid, how)
    rank_0.wait(_WAIT_S)
    _, alive = psutil.wait_procs(ranks, timeout=_WAIT_S)
    assert not alive
    rank_0.stdin.close()
    rank_0.stdout.close()


def test_ranks_listen_on_no_wildcard_and_closing_ends_them(reference: Reference) -> None:
    with running(worker_config(reference.folder, _PAIR, 0)) as engine:
        ranks = followers()
        assert len(ranks) == 1
        engine.audit()
        # Each has a NIXL agent too, which listens where other workers reach it.
        for rank in (*ranks, psutil.Process()):
            assert "127.0.0.1" in listening(rank)
            assert not {"::", "0.0.0.0"} & listening(rank)
    assert not any(rank.is_running() for rank in ranks)


def test_a_config_survives_the_way_to_another_rank(tmp_path: Path) -> None:
    setup = RankSetup(2, 1234, worker_config(tmp_path, _LAYOUT, "auto", hop_b=False))
    assert RankSetup.from_json(setup.to_json()) == setup
