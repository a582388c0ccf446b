"""Runs a load from flags: finds the target, counts its tokens, sends, and stops when told to."""

from __future__ import annotations

import asyncio
import contextlib
import math
import resource
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import uvloop

from loadgen.asking import Asking
from loadgen.errors import LoadError
from loadgen.figures import Targets
from loadgen.load import Load, LoadRun, opened
from loadgen.prompts.tokens import TextTokens
from loadgen.results import Run
from loadgen.sessions import Session
from orchestrator.cli.load_inputs import LoadFlags, make_load
from orchestrator.cli.load_target import (
    TargetFlags,
    check_tokenizer,
    find_tokenizer,
    parse_target,
    prompt_source,
)
from orchestrator.spec import load_spec

_Result = TypeVar("_Result")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class RunFlags:
    """Everything but what is sent and when."""

    target: TargetFlags
    targets: Targets
    model: Path | None = None
    prompts: str = "text"
    temperature: float = 0.0
    ignore_eos: bool = True
    gpus: int | None = None


def run_load(
    flags: LoadFlags, run_flags: RunFlags, seen: Callable[[Run], None]
) -> dict[str, object]:
    """The report. Raises LoadError, which names the flag to change."""
    allow_many_sockets()
    run = _load(flags, run_flags, seen)
    return on_uvloop(run).document()


async def _load(flags: LoadFlags, given: RunFlags, seen: Callable[[Run], None]) -> Run:
    load, description = make_load(flags)
    began = datetime.now(UTC)
    target = parse_target(given.target)
    if given.prompts not in ("text", "random"):
        raise LoadError(f"--prompts {given.prompts}: must be text or random")
    shipped = load_spec().model
    tokenizer, supposed = find_tokenizer(given.model, Path(shipped.path))
    is_chat = given.target.api == "chat"
    client = target.client(tokenizer, keep_answers=flags.turns > 1 or flags.trace is not None)
    async with opened(client) as endpoint:
        if given.prompts == "text" or is_chat or endpoint.vocab_size is None:
            check_tokenizer(endpoint, tokenizer, supposed, shipped.name)
        asking = Asking(
            prompt_source(given.prompts, endpoint, tokenizer, flags.seed),
            "messages" if is_chat else "tokens",
            tokenizer,
            given.temperature,
            given.ignore_eos,
            flags.priority_class,
            endpoint.max_model_tokens,
        )
        running = LoadRun(
            client,
            load,
            given.targets,
            description=description,
            cluster=target.cluster(),
            gpus=given.gpus,
        )
        with stopped_by_signals(running.stop):
            run = await running.run(endpoint, asking, seen)
    run.target = {"address": given.target.target or "this machine", **run.target}
    run.began = began.isoformat(timespec="seconds")
    return run


def ask_questions(
    sessions: Sequence[Session],
    target_flags: TargetFlags,
    model: Path | None,
    users: int,
    temperature: float,
    seen: Callable[[Run], None],
) -> Run:
    """Chats whose text is given, by so many users; answers end where the model ends them."""

    async def ask() -> Run:
        target = parse_target(target_flags)
        tokenizer = None if model is None else TextTokens.of_folder(model)
        client = target.client(tokenizer, keep_answers=True)
        async with opened(client) as endpoint:
            asking = Asking(None, "messages", tokenizer, temperature, ignore_eos=False)
            running = LoadRun(client, Load(sessions, users), Targets(math.inf, math.inf))
            with stopped_by_signals(running.stop):
                run = await running.run(endpoint, asking, seen)
        run.target = {"address": target_flags.target or "this machine", **run.target}
        return run

    allow_many_sockets()
    return on_uvloop(ask())


@contextlib.contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `stop` while the block runs."""
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


def on_uvloop(work: Coroutine[object, object, _Result]) -> _Result:
    """Run it: a client on this loop keeps up with twice as many streams."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def allow_many_sockets() -> None:
    """Over HTTP each open request has a socket, and shells allow few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
