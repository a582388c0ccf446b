"""From the flags of `tandem load` to the conversations that will be sent, checked on the way."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from loadgen import arrivals
from loadgen.errors import LoadError
from loadgen.load import Load
from loadgen.sessions import Conversation, Lengths, Session, made_up, of_trace
from loadgen.traces.reading import FORMATS, read_trace
from loadgen.traces.request import TraceRequest
from loadgen.traces.shaping import Cut, at_times, cut, scaled, sped_up

PROCESSES = ("replay", "poisson", "gamma", "constant", "ramp", "step", "diurnal")
_NEED_SECOND_RATE = ("ramp", "step")


@dataclass(frozen=True, slots=True)
class TraceFlags:
    """Which requests of a file are sent, and how many times as fast and as many."""

    path: Path
    form: str = "auto"
    limit: int | None = None
    speedup: float = 1.0
    scale: float = 1.0
    bounds: Cut = Cut()  # noqa: RUF009 - frozen


@dataclass(frozen=True, slots=True)
class ArrivalFlags:
    """When requests come; `process` "" is that of a trace, else Poisson."""

    process: str = ""
    rate_rps: float | None = None
    to_rate_rps: float | None = None
    period_s: float | None = None
    burstiness: float = 0.5
    swing: float = 0.8


@dataclass(frozen=True, slots=True)
class LoadFlags:
    """All that says what is sent."""

    trace: TraceFlags | None
    arrivals: ArrivalFlags
    isl: str
    osl: str
    turns: int = 1
    think_s: float = 0.0
    users: int | None = None
    seconds: float | None = None
    limit: int | None = None
    priority_class: str = ""
    seed: int = 0


def make_load(flags: LoadFlags) -> tuple[Load, dict[str, object]]:
    """The load, and a description of it for the report. Raises LoadError, naming the flag."""
    process = _process(flags)
    description: dict[str, object] = {
        "trace": None if flags.trace is None else flags.trace.path.name,
        "arrivals": process,
        "seed": flags.seed,
    }
    if flags.trace is None:
        description |= {"isl": flags.isl, "osl": flags.osl, "turns": flags.turns}
    if flags.users is not None:
        description |= {"users": flags.users, "think_s": flags.think_s}
    elif process != "replay":
        description["requests_per_s"] = flags.arrivals.rate_rps
    sessions = _sessions(flags, process)
    load = Load(sessions, flags.users, flags.think_s, flags.seconds)
    return load, description


def _process(flags: LoadFlags) -> str:
    given = flags.arrivals
    if flags.users is not None:
        if given.rate_rps is not None or given.process:
            raise LoadError(
                f"--users {flags.users}: in a closed loop users decide when requests come",
                "leave out --arrivals and --rate, or leave out --users",
            )
        return "closed loop"
    process = given.process or ("replay" if given.rate_rps is None else "poisson")
    if process not in PROCESSES:
        raise LoadError(f"--arrivals {process}: must be one of {', '.join(PROCESSES)}")
    if process == "replay":
        if flags.trace is None:
            raise LoadError(
                "nothing says when requests come",
                "give --trace FILE, --rate R, or --users N",
            )
        if given.rate_rps is not None:
            raise LoadError(
                "--arrivals replay: a trace has moments of its own; leave out --rate",
                "or hurry the trace with --speedup, or repeat its requests with --scale",
            )
        return process
    if given.rate_rps is None:
        raise LoadError(f"--arrivals {process}: needs a rate", "give --rate, in requests a second")
    if process in _NEED_SECOND_RATE and given.to_rate_rps is None:
        raise LoadError(f"--arrivals {process}: needs a second rate", "give --to-rate")
    if process in (*_NEED_SECOND_RATE, "diurnal") and given.period_s is None:
        raise LoadError(
            f"--arrivals {process}: needs --period-s",
            "seconds that a ramp takes, after which a step comes, or that a day has",
        )
    if flags.trace is None and flags.seconds is None and flags.limit is None:
        raise LoadError("nothing says when the load ends", "give --seconds or --limit")
    return process


def _times(flags: LoadFlags, process: str) -> Iterator[float]:
    given = flags.arrivals
    rate, seed = given.rate_rps or 0.0, flags.seed
    period_s = given.period_s or 1.0
    match process:
        case "constant":
            return arrivals.constant(rate)
        case "poisson":
            return arrivals.poisson(rate, seed)
        case "gamma":
            return arrivals.gamma(rate, given.burstiness, seed)
        case "diurnal":
            over = arrivals.diurnal(rate, given.swing, period_s)
            return arrivals.varying(over, rate * (1.0 + given.swing), seed)
    second = given.to_rate_rps or 0.0
    shape = arrivals.ramp if process == "ramp" else arrivals.step
    return arrivals.varying(shape(rate, second, period_s), max(rate, second), seed)


def _sessions(flags: LoadFlags, process: str) -> Iterable[Session]:
    if flags.trace is not None:
        requests = _of_file(flags.trace, flags)
        if process not in ("replay", "closed loop"):
            requests = at_times(
                requests, list(itertools.islice(_times(flags, process), len(requests)))
            )
        return of_trace(requests)
    conversation = Conversation(
        parse_lengths("--isl", flags.isl),
        parse_lengths("--osl", flags.osl),
        flags.turns,
        flags.think_s,
        flags.priority_class,
    )
    closed = flags.users is not None
    if closed and flags.seconds is None and flags.limit is None:
        raise LoadError("nothing says when the load ends", "give --seconds or --limit")
    times = itertools.repeat(0.0) if closed else _times(flags, process)
    return itertools.islice(made_up(conversation, times, flags.seed), flags.limit)


def _of_file(trace: TraceFlags, flags: LoadFlags) -> list[TraceRequest]:
    forms = {name: name for name in FORMATS}
    if trace.form not in forms:
        raise LoadError(f"--format {trace.form}: must be one of {', '.join(FORMATS)}")
    longest = parse_lengths("--osl", flags.osl).high
    try:
        requests = read_trace(trace.path, forms[trace.form], trace.limit, longest)
    except LoadError as error:
        raise LoadError(f"--{error.message}", error.hint) from error
    requests = cut(requests, trace.bounds)
    if trace.scale != 1.0:
        requests = scaled(requests, trace.scale, flags.seed)
    if trace.speedup != 1.0:
        requests = sped_up(requests, trace.speedup)
    return requests


def parse_lengths(flag: str, text: str) -> Lengths:
    """ "512", or "100-900" for all between. Raises LoadError."""
    low, dash, high = text.partition("-")
    try:
        lengths = Lengths(int(low), int(high) if dash else int(low))
    except ValueError as error:
        raise LoadError(
            f"{flag} {text}: expected tokens such as 512, or a range such as 100-900"
        ) from error
    if not 1 <= lengths.low <= lengths.high:
        raise LoadError(f"{flag} {text}: must be at least 1, the smaller number first")
    return lengths
