"""Two network namespaces joined by a cable that can be pulled. Only root can make them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_SLAVE_EVERYWHERE = 0x00080000 | 0x00004000


def why_not() -> str | None:
    """Why namespaces cannot be made here; None when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root: run as root to test a cut link"
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "the commands ip and tc are missing: install iproute2 to test a cut link"
    probe = f"tandem-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    _ip("netns", "del", probe)
    return None


class Cable:
    """A veth pair between two namespaces."""

    def __init__(self) -> None:
        # Interface names have at most 15 characters.
        self._tag = f"tnd{os.getpid() % 100_000}"
        self.left, self.right = f"{self._tag}l", f"{self._tag}r"
        self.addresses = ("10.213.7.1", "10.213.7.2")
        for number, name in enumerate((self.left, self.right), start=1):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")  # NIXL does not start without it
            if number == 2:
                _ip(
                    "link",
                    "add",
                    f"{self._tag}a",
                    "netns",
                    self.left,
                    "type",
                    "veth",
                    "peer",
                    "name",
                    f"{self._tag}b",
                    "netns",
                    self.right,
                )
        ends = ((self.left, "a"), (self.right, "b"))
        for address, (name, end) in zip(self.addresses, ends, strict=True):
            device = f"{self._tag}{end}"
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
            _ip("-n", name, "link", "set", device, "up")

    def slow_down(self, rate: str = "400mbit") -> None:
        """From left to right no more than this passes, in the words of tc."""
        limit = ["root", "tbf", "rate", rate, "burst", "256kb", "latency", "50ms"]
        self._tc("qdisc", "add", "dev", f"{self._tag}a", *limit)

    def pull(self) -> None:
        """Nothing passes any more, and neither end is told."""
        _ip("-n", self.left, "link", "set", f"{self._tag}a", "down")

    def plug(self) -> None:
        """Make it whole and quick again."""
        self._tc("qdisc", "del", "dev", f"{self._tag}a", "root")
        _ip("-n", self.left, "link", "set", f"{self._tag}a", "up")

    def received_bytes(self) -> int:
        """What has come in on the right."""
        counter = f"/sys/class/net/{self._tag}b/statistics/rx_bytes"
        command = ["ip", "netns", "exec", self.right, "cat", counter]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def _tc(self, *arguments: str) -> None:
        subprocess.run(["tc", "-n", self.left, *arguments], check=True, capture_output=True)

    def remove(self) -> None:
        for name in (self.left, self.right):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)


def enter(name: str) -> None:
    """Move this thread, and those that it starts, into a namespace.

    With a view of /sys of its own, as `ip netns exec` gives: UCX looks there for its devices.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def check(status: int) -> None:
        if status:
            number = ctypes.get_errno()
            raise OSError(number, f"entering the network namespace {name}: {os.strerror(number)}")

    with Path(f"/run/netns/{name}").open() as namespace:
        check(libc.setns(namespace.fileno(), _CLONE_NEWNET))
    check(libc.unshare(_CLONE_NEWNS))
    check(libc.mount(b"none", b"/", None, _MS_SLAVE_EVERYWHERE, None))
    check(libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None))


@contextlib.contextmanager
def cable() -> Iterator[Cable]:
    """A cable for the time of a test."""
    joined = Cable()
    try:
        yield joined
    finally:
        joined.remove()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
