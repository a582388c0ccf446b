"""This worker's end of NIXL: registered memory, known peers, writes and notifications.

Exists to keep the library's words, its log lines and its errors in one place. Everything is called
by the engine loop, which also drives the network: without a progress thread nothing moves unless
somebody polls. NIXL's own progress thread spins, and takes a whole core while idle, so it is off
unless a machine has cores to spare.
"""

from __future__ import annotations

import logging
import os
import secrets
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Read by NIXL and UCX when they are loaded. Both log to stdout by default, which belongs to
# the command line's JSON.
os.environ.setdefault("NIXL_LOG_LEVEL", "FATAL")
os.environ.setdefault("UCX_LOG_LEVEL", "fatal")
os.environ.setdefault("UCX_LOG_FILE", "stderr")

from nixl import _bindings as nixl_bindings
from nixl._api import (
    nixl_agent,
    nixl_agent_config,
    nixl_xfer_handle,
)

from workers.handoff.errors import TransferFailed
from workers.state.copies import LENGTH, SOURCE, TARGET, Copies
from workers.state.store import DeviceMemory

logger = logging.getLogger(__name__)

# The bindings give their errors no common base.
_NIXL_ERRORS: tuple[type[Exception], ...] = tuple(
    error
    for name, error in vars(nixl_bindings).items()
    if name.startswith("nixl") and name.endswith("Error")
)
_BACKEND = "UCX"
# Decode workers come and go; those that were not written to for longest are forgotten first.
_MOST_PEERS = 256
# UCX takes an endpoint down while it is polled, and aborts the process if it never got to.
_FAREWELL_POLLS = 16


@dataclass(frozen=True, slots=True)
class RemoteMemory:
    """The other end of a write: which agent, how to reach it, and what its addresses mean."""

    agent_name: str
    agent_metadata: bytes
    memory_type: str
    device_id: int


@dataclass(frozen=True, slots=True)
class Notification:
    """A message from another agent, sent on its own or after the bytes of a write."""

    sender: str
    payload: bytes


class Transfer:
    """One write under way. It reads local memory until it is done or released."""

    def __init__(self, agent: nixl_agent, handle: nixl_xfer_handle, remote_name: str) -> None:
        self._agent = agent
        self._handle = handle
        self.remote_name = remote_name
        self.duration_ms = 0.0  # from the post to its end; known when done
        self.released = False

    def poll(self) -> bool:
        """Whether every byte is in place. Never blocks.

        Raises:
            TransferFailed: NIXL gave up.
        """
        try:
            state = self._agent.check_xfer_state(self._handle)
            if state == "DONE":
                telemetry = self._agent.get_xfer_telemetry(self._handle)
                self.duration_ms = telemetry.xferDuration / 1000.0
                return True
        except _NIXL_ERRORS as error:
            raise _failure(f"writing to {self.remote_name}", error) from error
        if state == "ERR":
            raise TransferFailed(f"writing to {self.remote_name}: the network reports an error")
        return False

    def release(self) -> bool:
        """Let go of the write, cancelling it if it is under way; False: not yet, try again."""
        if not self.released:
            try:
                self._agent.release_xfer_handle(self._handle)
            except _NIXL_ERRORS as error:
                logger.debug("a write to %s cannot be released yet: %s", self.remote_name, error)
                return False
            self.released = True
        return True


class NixlAgent:
    """Named anew at every start, so that nobody mistakes a restarted worker for the old one."""

    def __init__(self, worker_id: str, *, progress_thread: bool = False) -> None:
        self.name = f"{worker_id}.{secrets.token_hex(4)}"
        config = nixl_agent_config(
            backends=[_BACKEND], enable_prog_thread=progress_thread, capture_telemetry=True
        )
        self._agent: nixl_agent = nixl_agent(self.name, config)
        # The wrapper's logger writes to stdout; ours decides.
        nixl_logger = logging.getLogger("nixl")
        nixl_logger.handlers.clear()
        nixl_logger.propagate = True
        self._registered: list[nixl_bindings.nixlRegDList] = []
        self._metadata: bytes | None = None
        self._peers: dict[str, None] = {}  # least recently written to first
        self._leaving: set[str] = set()  # peers to forget when their last write is released
        self._transfers: list[Transfer] = []
        self._farewell_polls = 0  # until the endpoints of forgotten peers are down

    @property
    def metadata(self) -> bytes:
        """What another agent needs to reach this one and its registered memory."""
        if self._metadata is None:
            self._metadata = self._agent.get_agent_metadata()
        return self._metadata

    def register(self, memory: DeviceMemory) -> None:
        """Let the network read and write `memory`; before the first ticket is made."""
        rows = [(part.address, part.length_bytes, memory.device_id, "") for part in memory.ranges]
        if rows:
            self._registered.append(self._agent.register_memory(rows, memory.memory_type))
            self._metadata = None

    def connect(self, remote: RemoteMemory) -> None:
        """Learn how to reach a peer, once for each; later calls cost nothing.

        Raises:
            TransferFailed: the metadata is no good, or the peer is being forgotten.
        """
        self._settle_leaving()
        name = remote.agent_name
        if name in self._leaving:
            raise TransferFailed(f"{name}: a write to it failed and another has not ended yet")
        if name in self._peers:
            del self._peers[name]
            self._peers[name] = None
            return
        try:
            # The wrapper's annotation says str, the bindings return bytes.
            found: object = self._agent.add_remote_agent(remote.agent_metadata)
        except _NIXL_ERRORS as error:
            raise _failure(f"metadata of {name}", error) from error
        found_name = found.decode() if isinstance(found, bytes) else str(found)
        self._peers[found_name] = None
        if found_name != name:
            self.forget(found_name)
            raise TransferFailed(f"metadata of {name} belongs to {found_name}")
        if len(self._peers) > _MOST_PEERS:
            busy = {transfer.remote_name for transfer in self._transfers}
            idle = (peer for peer in self._peers if peer not in busy and peer != name)
            self.forget(next(idle, ""))

    def write(
        self,
        copies: Copies,
        local: DeviceMemory,
        remote: RemoteMemory,
        notification: bytes,
    ) -> Transfer:
        """Begin to copy to a peer; `notification` reaches it after the last byte.

        Raises:
            TransferFailed: the write could not begin, e.g. because the peer is gone or an address
                is not registered.
        """
        if len(copies) == 0:
            raise TransferFailed(
                "nothing to write: the model has neither attention nor Mamba layers; "
                "serve it without a prefill pool"
            )
        self.connect(remote)
        sources = _descriptors(copies, SOURCE, local.device_id)
        targets = _descriptors(copies, TARGET, remote.device_id)
        try:
            handle = self._agent.initialize_xfer(
                "WRITE",
                self._agent.get_xfer_descs(sources, local.memory_type),
                self._agent.get_xfer_descs(targets, remote.memory_type),
                remote.agent_name,
                notification,
            )
        except _NIXL_ERRORS as error:
            raise _failure(f"preparing a write to {remote.agent_name}", error) from error
        transfer = Transfer(self._agent, handle, remote.agent_name)
        self._transfers.append(transfer)
        try:
            state = self._agent.transfer(handle)
        except _NIXL_ERRORS as error:
            transfer.release()
            raise _failure(f"writing to {remote.agent_name}", error) from error
        if state == "ERR":
            transfer.release()
            raise TransferFailed(f"writing to {remote.agent_name}: the network reports an error")
        return transfer

    def notify(self, agent_name: str, payload: bytes) -> None:
        """Send a message of its own to a peer that was connected to. Does not wait.

        Raises:
            TransferFailed: the peer is unknown or gone.
        """
        try:
            self._agent.send_notif(agent_name, payload)
        except _NIXL_ERRORS as error:
            raise _failure(f"telling {agent_name}", error) from error

    def notifications(self) -> list[Notification]:
        """What has come in since the last call, in order per sender. Also drives the network."""
        self._farewell_polls = max(0, self._farewell_polls - 1)
        return [
            Notification(sender, payload)
            for sender, payloads in self._agent.get_new_notifs().items()
            for payload in payloads
        ]

    def forget(self, agent_name: str) -> None:
        """Drop a peer that failed or went away, as soon as no write to it is left."""
        if agent_name in self._peers:
            self._leaving.add(agent_name)
            self._settle_leaving()

    def close(self) -> None:
        """Cancel what is under way, give the memory back and close the network devices."""
        for transfer in self._transfers:
            transfer.release()
        while self._registered:
            self._agent.deregister_memory(self._registered.pop())
        # Not a poll more: where a peer went away while it was being connected to, UCX aborts.
        for _ in range(self._farewell_polls):
            self._agent.get_new_notifs()
        # Ports and shared memory go with the last reference.
        self._transfers.clear()
        del self._agent

    def _settle_leaving(self) -> None:
        self._transfers = [t for t in self._transfers if not t.released]
        busy = {transfer.remote_name for transfer in self._transfers}
        for name in self._leaving - busy:
            self._farewell_polls = _FAREWELL_POLLS
            try:
                self._agent.remove_remote_agent(name)
            except _NIXL_ERRORS as error:
                logger.warning("forgetting the agent %s: %s", name, error)
            self._leaving.discard(name)
            del self._peers[name]


def _descriptors(copies: Copies, end: int, device_id: int) -> NDArray[np.uint64]:
    """Rows of address, length and device for one end of the copies."""
    device = np.full(len(copies), device_id, dtype=np.uint64)
    return np.stack((copies[:, end], copies[:, LENGTH], device), axis=1)


def _failure(doing: str, error: Exception) -> TransferFailed:
    return TransferFailed(f"{doing}: {type(error).__name__} {error}")
