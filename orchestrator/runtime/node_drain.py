"""Empties a Ray node before it goes: the preStop hook of a worker's pod.

Ray Serve starts a replacement for each replica of a draining node, then stops the replica in its
own order. This waits until none is left, so that a node drain or an eviction takes no worker away
in the middle of its work.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

from orchestrator.runtime.stop_times import drain_deadline_s

_POLL_S = 0.5
_REPLICA = "ray::ServeReplica:"


def replicas() -> int:
    """Replicas of Ray Serve that run in this pod; Ray names its processes after what they do."""
    return sum(
        process.info["name"].startswith("ray::ServeRepli")
        and any(part.startswith(_REPLICA) for part in process.info["cmdline"] or ())
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] is not None
    )


def drain(timeout_s: float) -> None:
    """Ask Ray to move everything off this node. Raises CalledProcessError when it refuses."""
    subprocess.run(  # noqa: S603 - our own arguments
        [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "drain-node",
            "--address=auto",
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=the pod of this node is being stopped",
            f"--deadline-remaining-seconds={drain_deadline_s(timeout_s):.0f}",
        ],
        check=True,
        timeout=60,
    )


def wait_empty(
    count: Callable[[], int],
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Whether `count` reached 0 in time."""
    deadline = clock() + timeout_s
    while count() > 0:
        if clock() >= deadline:
            return False
        sleep(_POLL_S)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timeout-s", type=float, required=True)
    timeout_s = parser.parse_args().timeout_s
    if replicas() == 0:
        return
    try:
        drain(timeout_s)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        # Without a head there is no order to wait for.
        sys.exit(f"Ray did not take the drain: {error}")
    if not wait_empty(replicas, timeout_s):
        sys.exit(f"a replica was still running after {timeout_s:.0f} s")


if __name__ == "__main__":
    main()
