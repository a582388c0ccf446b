"""Loads at an endpoint with TLS and keys: what lets them in, and what is said when it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadgen.clients.client import Client
from loadgen.errors import LoadError
from loadgen.watching import watch_http
from orchestrator.cli.load_target import TargetFlags, parse_target
from router.config import TlsFiles
from tests.integration.loadgen.test_router import at_once, run_load
from tests.integration.router.certificates import Authority
from tests.integration.router.test_access import KEY, alice, serving


def client_of(scheme: str, address: str, ca: Path | None, key: Path | None) -> Client:
    flags = TargetFlags(f"{scheme}://{address}", api_key_file=key, ca=ca)
    return parse_target(flags).client(None, keep_answers=False)


async def test_a_trusted_certificate_and_a_known_key_let_a_load_in(
    tmp_path: Path, model_dir: Path
) -> None:
    authority = Authority(tmp_path)
    pair, ca = authority.issue("router"), authority.pair.cert
    key, other = tmp_path / "key", tmp_path / "other"
    key.write_text(KEY + "\n")
    other.write_text("not a key of anybody")
    tls = TlsFiles(str(pair.cert), str(pair.key))
    async with serving(model_dir, tls, alice()) as (addresses, _):
        for scheme, plain, at in (
            ("https", "http", addresses.http),
            ("grpcs", "grpc", addresses.grpc),
        ):
            run = await run_load(client_of(scheme, at, ca, key), at_once(2, 1), model_dir)
            assert [record.good for record in run.recorder.records] == [True, True]
            for refused, hint in (
                (client_of(scheme, at, ca, None), "--api-key-file"),
                (client_of(scheme, at, ca, other), "--api-key-file"),
                (client_of(scheme, at, None, key), "--ca"),
                (client_of(plain, at, None, key), "https:// or grpcs://"),
            ):
                with pytest.raises(LoadError) as error:
                    await run_load(refused, at_once(1), model_dir)
                assert hint in error.value.hint
        samples = watch_http(f"https://{addresses.http}", str(ca), KEY)
        assert (await anext(samples)).decode_serving == 1
        await samples.aclose()
