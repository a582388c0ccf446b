"""Clears up when the command that runs a cluster is killed.

A process killed with -9 cannot stop what it started, and some of Ray's agents outlive their parent
by minutes. `python -m orchestrator.runtime.guardian` watches the command through its standard
input: when that closes it ends whatever still belongs to the cluster; after an orderly stop it is
simply told to go (SIGTERM). It reads one JSON line {"cluster": .., "temp_dir": ..} and prints one
line when it watches.
"""

from __future__ import annotations

import json
import shutil
import sys

from orchestrator.runtime.leftovers import end_leftovers
from orchestrator.runtime.run_file import RunFiles

# Long enough for workers to see their pipes close and withdraw from the directory.
_PATIENCE_S = 3.0


def main() -> None:
    config = json.loads(sys.stdin.readline())
    print("{}", flush=True)  # noqa: T201 - the parent reads it
    sys.stdin.read()
    end_leftovers(config["cluster"], patience_s=_PATIENCE_S)
    shutil.rmtree(config["temp_dir"], ignore_errors=True)
    RunFiles().remove(config["cluster"])


if __name__ == "__main__":
    main()
