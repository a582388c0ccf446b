"""What a real API server was asked, from its own audit log: nobody else counts as reliably."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from k8s.operator.objects import mapping, text

# One line for each request, when it is done; watches stay open and are left out.
POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted", "Panic"],
    "rules": [
        {"level": "Metadata", "users": ["system:serviceaccount:tandem:tandem-operator"]},
        {"level": "None"},
    ],
}
_WAIT_S = 90.0


@dataclass(frozen=True, slots=True)
class Request:
    """One that the operator made about objects of a namespace."""

    verb: str
    resource: str  # with its subresource: tandemservices/status
    name: str
    code: int

    @property
    def writes(self) -> bool:
        return self.verb not in ("get", "list")


class Audit:
    """Reads the log as it grows."""

    def __init__(self, log: Path) -> None:
        log.touch()
        self._log = log

    def follow(self, namespace: str) -> Follower:
        return Follower(self._log, namespace)


class Follower:
    """Requests about one namespace, leases aside, from now on; a context manager."""

    def __init__(self, log: Path, namespace: str) -> None:
        self._namespace = namespace
        self.seen: list[Request] = []
        self._rest = b""
        self._tail = subprocess.Popen(
            ["tail", "--lines=0", "--follow", str(log)], stdout=subprocess.PIPE
        )

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self._tail.kill()
        self._tail.communicate()

    def wait(self, until: Callable[[Sequence[Request]], bool]) -> list[Request]:
        """All that was asked, as soon as it is what is waited for."""
        deadline = time.monotonic() + _WAIT_S
        stream = self._tail.stdout
        assert stream is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while not until(self.seen):
                left_s = deadline - time.monotonic()
                ready = selector.select(max(left_s, 0.0))
                assert ready, f"nothing more was asked in {_WAIT_S:.0f} s: {self.seen}"
                *lines, self._rest = (self._rest + os.read(stream.fileno(), 65536)).split(b"\n")
                for line in lines:
                    self._take(line)
        return self.seen

    def _take(self, line: bytes) -> None:
        event = json.loads(line)
        about = mapping(event, "objectRef")
        resource, part = text(about, "resource"), text(about, "subresource")
        verb = text(event, "verb")
        if text(about, "namespace") != self._namespace or resource == "leases" or verb == "watch":
            return
        code = mapping(event, "responseStatus").get("code")
        assert isinstance(code, int)
        name = f"{resource}/{part}" if part else resource
        self.seen.append(Request(verb, name, text(about, "name"), code))
