"""A port that is taken is told by number, holder and flag, before anything slow starts."""

from __future__ import annotations

import os
import socket

import pytest
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.errors import UserError
from orchestrator.runtime.ports import check_free, free_port


def test_a_free_port_passes_and_port_zero_always_does() -> None:
    check_free(f"127.0.0.1:{free_port()}", "gRPC", "--grpc")
    check_free("127.0.0.1:0", "gRPC", "--grpc")
    check_free("localhost:0", "gRPC", "--grpc")


def test_a_taken_port_names_its_holder_and_the_flag() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as caught:
            check_free(f"127.0.0.1:{port}", "HTTP", "--http")
    assert caught.value.message.startswith(f"port {port} for HTTP is in use by ")
    assert f"(pid {os.getpid()})" in caught.value.message
    assert "--http 127.0.0.1:" in caught.value.hint


def test_a_port_that_its_holder_would_share_counts_as_taken() -> None:
    # As gRPC servers do, unless told otherwise.
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="in use"):
            check_free(f"127.0.0.1:{taken.getsockname()[1]}", "gRPC", "--grpc")


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot listen on 192\.0\.2\.77:50051"):
        check_free("192.0.2.77:50051", "gRPC", "--grpc")
    with pytest.raises(UserError, match=r"host 'nowhere\.invalid' is unknown"):
        check_free("nowhere.invalid:1", "gRPC", "--grpc")


def test_up_tells_of_a_taken_port_and_starts_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["up", "--grpc", f"127.0.0.1:{port}"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: port {port} for gRPC is in use by ")
