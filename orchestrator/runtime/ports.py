"""Finds out that a port is taken before anything slow starts, and who has it."""

from __future__ import annotations

import errno
import socket

import psutil

from orchestrator.errors import UserError


def split_address(address: str) -> tuple[str, int]:
    """host:port into its parts; brackets of IPv6 hosts go."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def check_free(address: str, what: str, flag: str) -> None:
    """Raise UserError when nothing can listen on `address`; `flag` is how to choose another."""
    host, port = split_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise UserError(
            f"{flag} {address}: host {host!r} is unknown ({error.strerror})",
            f"use an address of this machine, such as {flag} 127.0.0.1:{port}",
        ) from error
    family, kind, protocol, _, sockaddr = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(sockaddr)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"port {port} for {what} is in use{_holder(port)}",
                    f"stop that, or choose another port: {flag} {host}:{free_port(host)}",
                ) from error
            raise UserError(
                f"cannot listen on {address} for {what}: {error.strerror}",
                f"choose another address: {flag} 127.0.0.1:{port}",
            ) from error


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on at this moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _holder(port: int) -> str:
    """' by NAME (pid N)', as far as this user may know."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return ""
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,):
            if connection.pid is None:
                return " by a process of another user"
            try:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.NoSuchProcess:
                return ""
    return ""
