"""From the flags of `tandem load` to the conversations that will be sent, checked on the way."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from loadgen import arrivals
from loadgen.errors import LoadError
from loadgen.load import Load
from loadgen.sessions import Conversation, Lengths, Session, made_up, of_trace
from loadgen.traces.reading import FORMATS, read_trace
from loadgen.traces.request import TraceRequest
from loadgen.traces.shaping import Cut, at_times, cut, scaled, sped_up
from orchestrator.cli.load_unused import PROCESSES_OF, refuse_unused
from orchestrator.cli.load_words import CLOSED_LOOP

PROCESSES = ("replay", "poisson", "gamma", "constant", "ramp", "step", "diurnal")
_NEED_SECOND_RATE = ("ramp", "step")


@dataclass(frozen=True, slots=True)
class TraceFlags:
    """Which requests of a file are sent, and how many times as fast and as many."""

    path: Path
    form: str = "auto"
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
    """All that says what is sent; `given` are the parameters that somebody named."""

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
    given: Collection[str] = ()


def make_load(flags: LoadFlags) -> tuple[Load, dict[str, object]]:
    """The load, and a description of it for the report. Raises LoadError, naming the flag."""
    process = _process(flags)
    refuse_unused(flags.given, flags.trace is not None, process)
    sessions = _sessions(flags, process)
    load = Load(sessions, flags.users, flags.think_s, flags.seconds)
    return load, _described(flags, process)


def _described(flags: LoadFlags, process: str) -> dict[str, object]:
    """The flags, by name, as far as they have an effect."""
    told: dict[str, object] = {}
    if flags.trace is None:
        told |= {"isl": flags.isl, "osl": flags.osl, "turns": flags.turns}
    else:
        trace, bounds = flags.trace, asdict(flags.trace.bounds)
        unlike = {
            name: bounds[name] for name, kept in asdict(Cut()).items() if bounds[name] != kept
        }
        told |= {"trace": trace.path.name, "speedup": trace.speedup, "scale": trace.scale, **unlike}
    told["arrivals"] = process
    if flags.users is not None:
        told |= {"users": flags.users, "think_s": flags.think_s}
    elif process != "replay":
        given = flags.arrivals
        told["requests_per_s"] = given.rate_rps
        shapes = {
            "to_rate": given.to_rate_rps,
            "period_s": given.period_s,
            "burstiness": given.burstiness,
            "swing": given.swing,
        }
        told |= {name: value for name, value in shapes.items() if process in PROCESSES_OF[name]}
    ends = {"limit": flags.limit, "seconds": flags.seconds}
    return {**told, **{name: end for name, end in ends.items() if end}, "seed": flags.seed}


def _process(flags: LoadFlags) -> str:
    given = flags.arrivals
    if flags.users is not None:
        if given.rate_rps is not None or given.process:
            raise LoadError(
                f"--users {flags.users}: in a closed loop users decide when requests come",
                "leave out --arrivals and --rate, or leave out --users",
            )
        return CLOSED_LOOP
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
        if process not in ("replay", CLOSED_LOOP):
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
    # Nothing is left out or repeated: then there is no need to read more than is sent.
    is_plain = trace.bounds == Cut() and trace.scale == 1.0
    try:
        read = read_trace(
            trace.path,
            forms[trace.form],
            flags.limit if is_plain else None,
            longest,
            trace.bounds.to_s,
        )
    except LoadError as error:
        raise LoadError(f"--{error.message}", error.hint) from error
    requests = cut(read, trace.bounds)
    if trace.scale != 1.0:
        requests = scaled(requests, trace.scale, flags.seed)
    if trace.speedup != 1.0:
        requests = sped_up(requests, trace.speedup)
    return requests[: flags.limit]


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
