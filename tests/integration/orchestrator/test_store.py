"""The embedded store: a real Valkey that answers, keeps nothing, and ends with its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from redis import Redis

from orchestrator.errors import UserError
from orchestrator.runtime.child import Interrupted
from orchestrator.runtime.ports import free_port
from orchestrator.runtime.store import EmbeddedStore, check_store

_GONE_S = 20.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    running = EmbeddedStore(tmp_path)
    yield running
    running.stop()


def _server(store: EmbeddedStore) -> psutil.Process:
    (server,) = psutil.Process(store.pid).children()
    return server


def test_it_answers_on_the_loopback_and_is_gone_after_its_stop(store: EmbeddedStore) -> None:
    with Redis.from_url(store.url) as client:
        assert client.set("key", "value", px=60_000)
        assert client.get("key") == b"value"
        assert client.config_get("save")["save"] == ""
        assert client.config_get("bind")["bind"] == "127.0.0.1"
    check_store(store.url)
    server = _server(store)
    store.stop()
    assert not server.is_running()
    with pytest.raises(UserError, match="does not answer"):
        check_store(store.url)


def test_it_is_known_to_have_ended_and_starts_again_at_its_address(store: EmbeddedStore) -> None:
    url = store.url
    watcher = psutil.Process(store.pid)
    _server(store).kill()
    watcher.wait(_GONE_S)
    assert store.ended
    store.restart()
    assert store.url == url
    check_store(url)


def test_two_of_them_run_side_by_side(store: EmbeddedStore, tmp_path: Path) -> None:
    other = EmbeddedStore(tmp_path / "other")
    try:
        assert other.port != store.port
        check_store(other.url)
    finally:
        other.stop()
    check_store(store.url)


def test_an_interrupted_start_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        EmbeddedStore(tmp_path, interrupted=lambda: True)


def test_it_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from orchestrator.runtime.store import EmbeddedStore\n"
        "store = EmbeddedStore(pathlib.Path(sys.argv[1]))\n"
        "print(store.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        assert owner.stdout is not None
        host = psutil.Process(int(owner.stdout.readline()))
        family = [host, *host.children()]
        assert len(family) == 2
        os.kill(owner.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=_GONE_S)
    assert not alive


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{port}/0", "redis://127.0.0.1:{port}/x"])
def test_a_store_that_does_not_answer_is_named_with_the_way_out(url: str) -> None:
    address = url.format(port=free_port())
    with pytest.raises(UserError, match="does not answer") as caught:
        check_store(address)
    assert address in caught.value.message
    assert "store: embedded" in caught.value.hint
