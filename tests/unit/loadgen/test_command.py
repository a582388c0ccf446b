"""`tandem load`: what its flags become, what it refuses, and what it says of a run."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from loadgen.errors import LoadError
from loadgen.figures import Targets
from loadgen.load import Load, LoadRun
from loadgen.traces.shaping import Cut
from orchestrator.cli.load_compare import compared
from orchestrator.cli.load_inputs import ArrivalFlags, LoadFlags, TraceFlags, make_load
from orchestrator.cli.load_page import page
from orchestrator.cli.load_words import summary_lines, what_was_sent
from orchestrator.cli.main import app
from tests.unit.loadgen.scripted import ScriptedClient
from tests.unit.loadgen.test_running import ASKING, single
from tests.unit.loadgen.virtual_time import run as run_on_virtual_time

DATA = Path(__file__).parents[2] / "data"
AZURE, MOONCAKE = DATA / "azure_2023_conv_300.csv", DATA / "mooncake_conversation_200.jsonl"


def document(ttft_s: float = 0.1) -> dict[str, object]:
    """The report of a run on virtual time, as it comes back from a file."""

    async def all_of_it() -> dict[str, object]:
        fails = {3: "REASON_QUEUE_FULL"}
        client = ScriptedClient(ttft_s=ttft_s, fails=lambda number: fails.get(number, ""))
        load = Load(single([0.25 * at for at in range(40)]))
        now = asyncio.get_running_loop().time
        running = LoadRun(client, load, Targets(500, 40), gpus=4, now=now)
        return (await running.run(await client.open(), ASKING)).document()

    text: dict[str, object] = json.loads(json.dumps(run_on_virtual_time(all_of_it())))
    return text


def flags(
    trace: TraceFlags | None = None,
    arrivals: ArrivalFlags = ArrivalFlags(),  # noqa: B008 - frozen
    **others: object,
) -> LoadFlags:
    return LoadFlags(trace, arrivals, **{"isl": "100", "osl": "20", **others})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        ArrivalFlags("poisson", 50.0),
        ArrivalFlags("gamma", 50.0, burstiness=0.5),
        ArrivalFlags("constant", 50.0),
        ArrivalFlags("ramp", 20.0, to_rate_rps=80.0, period_s=20.0),
        ArrivalFlags("step", 20.0, to_rate_rps=80.0, period_s=10.0),
        ArrivalFlags("diurnal", 50.0, period_s=5.0),
    ],
)
def test_every_process_makes_its_mean_rate(given: ArrivalFlags) -> None:
    load, description = make_load(flags(arrivals=given, seconds=20.0))
    times = [
        session.at_s for session in itertools.takewhile(lambda one: one.at_s <= 20.0, load.sessions)
    ]
    assert len(times) == pytest.approx(1000, rel=0.15)
    assert description["arrivals"] == given.process


def test_a_trace_is_replayed_cut_hurried_and_repeated() -> None:
    trace = TraceFlags(AZURE, speedup=2.0, scale=3.0, bounds=Cut(to_s=30.0, max_isl=2000))
    load, description = make_load(flags(trace))
    sessions = list(load.sessions)
    plain = list(
        make_load(flags(TraceFlags(AZURE, bounds=Cut(to_s=30.0, max_isl=2000))))[0].sessions
    )
    assert len(sessions) == 3 * len(plain)
    assert max(one.at_s for one in sessions) <= 15.0
    assert all(one.turns[0].new_tokens <= 2000 for one in sessions)
    assert (description["arrivals"], description["trace"]) == ("replay", AZURE.name)


def test_a_trace_may_come_at_another_rate_or_by_users() -> None:
    load, description = make_load(flags(TraceFlags(MOONCAKE), ArrivalFlags(rate_rps=10.0)))
    assert description["arrivals"] == "poisson"
    assert next(one.turns[0].hash_ids for one in load.sessions) == tuple(range(14))
    by_users, description = make_load(flags(TraceFlags(MOONCAKE), users=5))
    assert (by_users.users, description["arrivals"]) == (5, "closed loop")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (flags(), "nothing says when requests come"),
        (flags(arrivals=ArrivalFlags(rate_rps=5.0)), "nothing says when the load ends"),
        (flags(users=5), "nothing says when the load ends"),
        (flags(users=5, arrivals=ArrivalFlags(rate_rps=5.0)), "--users 5"),
        (flags(arrivals=ArrivalFlags("sometimes", 5.0)), "--arrivals sometimes: must be one of"),
        (flags(arrivals=ArrivalFlags("gamma")), "--arrivals gamma: needs a rate"),
        (flags(arrivals=ArrivalFlags("ramp", 5.0), seconds=1.0), "needs a second rate"),
        (flags(arrivals=ArrivalFlags("diurnal", 5.0), seconds=1.0), "needs --period-s"),
        (flags(TraceFlags(AZURE), ArrivalFlags("replay", 5.0)), "leave out --rate"),
        (flags(TraceFlags(AZURE, "excel")), "--format excel"),
        (flags(TraceFlags(Path("none.csv"))), "--trace none.csv: cannot be read"),
        (flags(arrivals=ArrivalFlags(rate_rps=5.0), limit=1, isl="x"), "--isl x"),
        (flags(arrivals=ArrivalFlags(rate_rps=5.0), limit=1, osl="9-3"), "--osl 9-3"),
        (flags(arrivals=ArrivalFlags(rate_rps=5.0), limit=1, given={"speedup"}), "--speedup"),
        (flags(TraceFlags(AZURE), given={"turns"}), "--turns: a trace has its own"),
        (flags(TraceFlags(AZURE), given={"burstiness"}), "--burstiness: changes nothing"),
    ],
)
def test_what_cannot_be_names_its_flag(given: LoadFlags, says: str) -> None:
    with pytest.raises(LoadError, match=says):
        make_load(given)


def test_a_limit_counts_what_is_left_of_a_trace() -> None:
    plain, _ = make_load(flags(TraceFlags(AZURE), limit=9))
    assert len(list(plain.sessions)) == 9
    long, _ = make_load(flags(TraceFlags(AZURE, bounds=Cut(min_isl=1500)), limit=9))
    assert [one.turns[0].new_tokens >= 1500 for one in long.sessions] == [True] * 9
    repeated, _ = make_load(flags(TraceFlags(AZURE, scale=3.0), limit=9))
    assert len(list(repeated.sessions)) == 9


def test_a_report_names_the_flags_that_had_an_effect() -> None:
    shape = ArrivalFlags("step", 5.0, to_rate_rps=9.0, period_s=3.0)
    _, told = make_load(flags(arrivals=shape, seconds=8.0))
    assert {name: told[name] for name in ("arrivals", "to_rate", "period_s", "seconds")} == {
        "arrivals": "step", "to_rate": 9.0, "period_s": 3.0, "seconds": 8.0
    }  # fmt: skip
    assert "swing" not in told
    report = {**document(), "load": told, "began": "2026-01-02T03:04:05+00:00"}
    said = what_was_sent(report)
    assert said.startswith("2026-01-02T03:04:05+00:00: prompts of text")
    assert "--arrivals step --requests-per-s 5.0 --to-rate 9.0 --period-s 3.0" in said
    assert said in page(report, "a load")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--rate 5 --seconds 1 --swing 0.5", "--swing: changes nothing with arrivals of poisson"),
        ("--rate 5 --seconds 1 --max-isl 9", "--max-isl: without a trace"),
        (f"--rate 5 --seconds 1 --target grpcs://h:1 --ca {AZURE}", "has no certificates"),
        ("--rate 5 --seconds 1 --target grpcs://h:1 --ca none.pem", "--ca none.pem: cannot"),
        ("--rate 5 --seconds 1 --target 127.0.0.1:50051", "--target 127.0.0.1:50051"),
        ("--rate 5 --seconds 1 --target grpc://h:1 --api chat", "over HTTP"),
        ("--rate 5 --seconds 1 --target http://h --api fax", "--api fax"),
        ("--rate 5 --seconds 1 --target http://h --api-key-file none", "--api-key-file none"),
        ("--rate 5 --seconds 1 --target http://h --prompts noise", "--prompts noise"),
        (
            "--rate 5 --seconds 1 --target grpc://127.0.0.1:1 --html no/where.html",
            "--html no/where",
        ),
        ("speed-bench --target grpc://127.0.0.1:50051", "over HTTP"),
        ("speed-bench --target http://h --data none.parquet", "--data none.parquet"),
        ("speed-bench --target http://h --baseline none.json", "--baseline none.json"),
        ("compare none.json none.json", "none.json: cannot be read"),
    ],
)
def test_a_command_that_cannot_be_is_one_line_and_status_2(arguments: str, says: str) -> None:
    result = CliRunner().invoke(app, ["load", *arguments.split()])
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr


class _Drawings(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.drawings = 0
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.drawings += tag == "svg"
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]


def test_the_page_draws_the_run_and_needs_nothing_from_elsewhere() -> None:
    report = document()
    text = page(report, "a load <of> ours")
    drawings = _Drawings()
    drawings.feed(text)
    assert drawings.drawings >= 5
    assert drawings.links == []
    assert "a load &lt;of&gt; ours" in text
    assert "REASON_QUEUE_FULL" in text
    for part in text.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + part.split("</svg>")[0] + "</svg>")


def test_the_summary_says_what_failed_and_how_good_it_was() -> None:
    lines = "\n".join(summary_lines(document()))
    assert "40 requests" in lines
    assert "1 REASON_QUEUE_FULL" in lines
    assert "97.5% met both targets" in lines
    assert "for each GPU" in lines


def test_two_runs_are_compared_figure_by_figure(tmp_path: Path) -> None:
    before, after = document(0.1), document(0.2)
    rows = {label: row for label, *row in compared(before, after)}
    assert rows["TTFT p50, ms"] == pytest.approx([100.0, 200.0, 2.0])
    assert rows["failed"] == [1.0, 1.0, 1.0]
    files = [tmp_path / "before.json", tmp_path / "after.json"]
    for file, one in zip(files, (before, after), strict=True):
        file.write_text(json.dumps(one))
    target = tmp_path / "both.html"
    command = ["load", "compare", *map(str, files), "--html", str(target)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert "TTFT p50, ms" in result.stdout
    assert target.read_text().count("<svg") == 3
    printed = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert printed["TTFT p50, ms"]["ratio"] == pytest.approx(2.0)


def test_a_run_can_be_compared_with_a_simulation() -> None:
    simulated = {"ttft_ms": {"p50": 50.0}, "requests_per_s": 3.0, "queue_ms": {"p50": 1.0}}
    rows = {label: row for label, *row in compared(simulated, document())}
    assert rows["TTFT p50, ms"] == pytest.approx([50.0, 100.0, 2.0])
    assert rows["queue p50, ms"] == [1.0, None, None]


def test_loads_need_neither_torch_nor_ray() -> None:
    code = (
        "import sys, orchestrator.cli.load, orchestrator.cli.load_run, orchestrator.cli.load_page; "
        "print([name for name in ('torch', 'ray', 'vllm', 'pyarrow') if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
