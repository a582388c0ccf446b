"""From `--target` to a client, and from `--model` to prompts in its tokens."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loadgen.clients.client import Client, Endpoint
from loadgen.clients.grpc_client import GrpcClient, channel_to
from loadgen.clients.http_client import Api, HttpClient
from loadgen.errors import LoadError
from loadgen.prompts.source import PromptSource, shipped_text
from loadgen.prompts.tokens import TextTokens
from loadgen.watching import ClusterSample, watch_grpc, watch_http
from orchestrator.cli.locate import running_cluster

_GRPC = {"grpc": False, "grpcs": True}
_HTTP = ("http", "https")


@dataclass(frozen=True, slots=True)
class TargetFlags:
    """Where requests go, and with what right."""

    target: str | None
    api: str = "completions"
    served_model: str = ""
    api_key_file: Path | None = None
    ca: Path | None = None
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed `--target`."""

    scheme: Literal["grpc", "http"]
    address: str
    tls: bool
    flags: TargetFlags
    api_key: str

    def client(self, tokenizer: TextTokens | None, keep_answers: bool) -> Client:
        """`keep_answers`: later turns carry them."""
        flags = self.flags
        if self.scheme == "grpc":
            return GrpcClient(
                self.address,
                tls=self.tls,
                root_certificates=None if flags.ca is None else flags.ca.read_bytes(),
                api_key=self.api_key,
                timeout_s=flags.timeout_s,
                keep_answers=keep_answers,
            )
        return HttpClient(
            self.address,
            api=_api(flags.api),
            model=flags.served_model,
            api_key=self.api_key,
            tokenizer=tokenizer,
            timeout_s=flags.timeout_s,
            root_certificates=None if flags.ca is None else str(flags.ca),
        )

    def cluster(self) -> AsyncGenerator[ClusterSample, None]:
        """What the cluster says of itself meanwhile."""
        if self.scheme == "http":
            base = self.address.rstrip("/").removesuffix("/v1")
            trusted = None if self.flags.ca is None else str(self.flags.ca)
            return watch_http(base, trusted, self.api_key)
        ca = None if self.flags.ca is None else self.flags.ca.read_bytes()
        return watch_grpc(channel_to(self.address, ca, self.tls), self.api_key)


def parse_target(flags: TargetFlags) -> Target:
    """Raises LoadError, which names the flag."""
    _api(flags.api)
    key = _read_key(flags.api_key_file)
    if flags.ca is not None:
        _check_certificates(flags.ca)
    if flags.target is None:
        record = running_cluster(None)
        if flags.api == "chat":
            return Target("http", f"http://{record.http}", False, flags, key)
        return Target("grpc", record.for_commands, False, flags, key)
    scheme, separator, rest = flags.target.partition("://")
    if separator and rest:
        if scheme in _GRPC:
            if flags.api == "chat":
                raise LoadError(
                    f"--target {flags.target}: chats are asked for over HTTP",
                    "name the http:// address, or leave out --api chat",
                )
            return Target("grpc", rest, _GRPC[scheme], flags, key)
        if scheme in _HTTP:
            return Target("http", flags.target, scheme == "https", flags, key)
    raise LoadError(
        f"--target {flags.target}: must begin with grpc://, grpcs://, http:// or https://",
        "such as grpc://127.0.0.1:50051 or http://127.0.0.1:8000",
    )


def _check_certificates(path: Path) -> None:
    try:
        ssl.create_default_context(cafile=str(path))
    except ssl.SSLError as error:
        raise LoadError(f"--ca {path}: has no certificates in PEM") from error
    except OSError as error:
        raise LoadError(f"--ca {path}: cannot be read: {error.strerror}") from error


def _api(text: str) -> Api:
    known: dict[str, Api] = {"completions": "completions", "chat": "chat"}
    if text in known:
        return known[text]
    raise LoadError(f"--api {text}: must be completions or chat")


def _read_key(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise LoadError(f"--api-key-file {path}: cannot be read: {error.strerror}") from error
    if not key:
        raise LoadError(f"--api-key-file {path}: is empty")
    return key


def find_tokenizer(model: Path | None, shipped: Path) -> tuple[TextTokens, bool]:
    """The tokenizer of `--model`, or the shipped model's; and whether that was only supposed."""
    return TextTokens.of_folder(shipped if model is None else model), model is None


def check_tokenizer(
    endpoint: Endpoint, tokenizer: TextTokens, supposed: bool, shipped_name: str
) -> None:
    """Refuse to send tokens of another vocabulary. Raises LoadError."""
    if supposed and endpoint.model != shipped_name:
        raise LoadError(
            f"the target serves {endpoint.model!r}, whose tokenizer is not known",
            "name its checkpoint folder with --model, for prompts of exactly the wanted tokens",
        )
    if endpoint.vocab_size is not None and tokenizer.vocab_size > endpoint.vocab_size:
        raise LoadError(
            f"--model: its tokenizer has {tokenizer.vocab_size} tokens, the served model "
            f"{endpoint.model!r} has {endpoint.vocab_size}",
            "name the checkpoint folder of the served model",
        )


def prompt_source(kind: str, endpoint: Endpoint, tokenizer: TextTokens, seed: int) -> PromptSource:
    """What prompts are cut from."""
    if kind == "text":
        return PromptSource(tokenizer.encode_long(shipped_text()), tokenizer.vocab_size, seed)
    return PromptSource(None, endpoint.vocab_size or tokenizer.vocab_size, seed)
