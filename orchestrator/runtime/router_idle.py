"""Waits until a router has nothing left to do: the preStop hook of a router's pod.

Kubernetes takes a pod out of its Service and runs this at the same time, so requests still arrive
for a moment: idle means idle for a while, not once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from orchestrator.client import Client
from orchestrator.errors import UserError

QUIET_S = 5.0
_POLL_S = 0.5


def wait_idle(
    requests: Callable[[], int],
    timeout_s: float,
    quiet_s: float = QUIET_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Whether `requests` was 0 for `quiet_s` on end before `timeout_s` had passed."""
    deadline = clock() + timeout_s
    idle_since: float | None = None
    while (now := clock()) < deadline:
        if requests() > 0:
            idle_since = None
        elif idle_since is None:
            idle_since = now
        if idle_since is not None and now - idle_since >= quiet_s:
            return True
        sleep(_POLL_S)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grpc", required=True, help="the router's gRPC address, host:port")
    parser.add_argument("--timeout-s", type=float, required=True)
    args = parser.parse_args()

    with Client(args.grpc) as client:

        def requests() -> int:
            try:
                status = client.status()
            except UserError:
                return 0  # a router that does not answer will finish nothing
            return status.queued_requests + status.running_requests

        if not wait_idle(requests, args.timeout_s):
            sys.exit(f"requests were still running after {args.timeout_s:.0f} s")


if __name__ == "__main__":
    main()
