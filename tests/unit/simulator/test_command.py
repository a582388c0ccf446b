"""`tandem simulate`: traces and clusters in, figures and a page out."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.errors import UsageError
from orchestrator.planner.profile import Profile, profile_text
from orchestrator.simulator.building import Machines, Options, cluster_of_spec, read_cluster
from orchestrator.simulator.trace import at_rate, read_trace, sped_up
from orchestrator.spec import ClusterSpec
from router.core.event_log import replay
from workers.perf.efficiency import ASSUMED
from workers.perf.hardware import known_hardware

DATA = Path(__file__).parents[2] / "data"
AZURE, MOONCAKE = DATA / "azure_2023_conv_300.csv", DATA / "mooncake_conversation_200.jsonl"
PLAN = (
    "plan --model llama-3.1-70b --hardware h200 --gpus 16 --isl 1200 --osl 210 --itl-ms 40 --json"
)
YAML = """
model: {path: .}
classes:
  interactive: {ttft_ms: 800, itl_ms: 30}
prefill: {layout: {tp: 2}, workers: {min: 2, max: 2}, max_requests: 64, kv_tokens: 200000}
decode:
  layout: {kvp: 2, tpa: 2, tpf: 2, ep: 2}
  workers: {min: 1, max: 2}
  max_requests: 128
  kv_tokens: 400000
"""


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_text(run(*PLAN.split()))
    return path


def test_a_plan_can_be_tried_on_a_trace(plan: Path) -> None:
    document = json.loads(
        run("simulate", "--trace", AZURE, "--cluster", plan, "--requests-per-s", "20", "--json")
    )
    asked = json.loads(plan.read_text())["best"]
    cluster = document["cluster"]
    assert cluster["prefill_workers"] == asked["prefill"]["count"]
    assert cluster["gpus"] == asked["gpus"]
    assert document["finished"] == document["requests"] == 300
    assert 0.0 < document["ttft_ms"]["p50"] <= document["ttft_ms"]["p99"]
    assert 0.0 < document["itl_ms"]["p50"] < 40.0
    assert document["goodput_share"] > 0.9
    assert document["gpu_hours"] == pytest.approx(16 * document["seconds"] / 3600.0)
    assert len(document["timeline"]) > 100
    assert 0.0 <= document["matched_ratio"] <= 1.0


def test_predictions_from_a_profile_say_how_far_off_it_is(plan: Path, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    measured = Profile(known_hardware("h200"), replace(ASSUMED, name="measured", error=0.23))
    profile.write_text(profile_text(measured))
    flags = ["simulate", "--trace", str(AZURE), "--cluster", str(plan), "--limit", "20"]
    assert "off by 23%" in run(*flags, "--profile", profile)
    document = json.loads(run(*flags, "--profile", profile, "--json"))
    assert document["cluster"]["error_estimate"] == 0.23
    assert json.loads(run(*flags, "--json"))["cluster"]["error_estimate"] is None


def test_twice_the_same_is_the_same_but_for_the_wall_clock(plan: Path) -> None:
    flags: list[str | Path]
    flags = ["simulate", "--trace", MOONCAKE, "--cluster", plan, "--speedup", "2", "--json"]
    documents = [json.loads(run(*flags)) for _ in range(2)]
    for document in documents:
        del document["simulated"]
    assert documents[0] == documents[1]


def test_the_page_needs_nothing_from_elsewhere_and_its_plots_are_well_formed(
    plan: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text("- {at_s: 4, kill: {role: decode, count: 1}}\n")
    flags = ["--requests-per-s", "20", "--scenario", str(scenario), "--html", str(page)]
    text = run("simulate", "--trace", AZURE, "--cluster", plan, *flags)
    assert "goodput" in text
    html = page.read_text()
    HTMLParser().feed(html)
    plots = [part.split("</svg>")[0] + "</svg>" for part in html.split("<svg")[1:]]
    assert len(plots) == 6
    for plot in plots:
        assert ElementTree.fromstring("<svg" + plot).findall(".//{*}polyline")
    assert html.replace("http://www.w3.org/2000/svg", "").count("http") == 0
    assert "attempts failed and were made again" in html


def test_a_clusters_file_is_simulated_as_it_would_be_started(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(YAML)
    one = read_cluster(file, "llama-3.1-8b", "h100", "auto", None, Options())
    assert one.counts == {"prefill": 2, "decode": 1}
    assert (one.kinds["prefill"].gpus, one.kinds["decode"].gpus) == (2, 4)
    assert one.kinds["decode"].kv_tokens == 400_000
    assert one.kinds["prefill"].step_tokens == 512, "what a worker has that is not told otherwise"
    assert one.policy.classes[0].ttft_s == 0.8
    with pytest.raises(UsageError, match="room for"):
        read_cluster(file, "llama-3.1-405b", "h100", "auto", None, Options())


def test_an_acceptance_length_needs_a_draft_length() -> None:
    machines = Machines.of("nemotron-3-super", "gb200", "auto", None, Options(acceptance=2.5))
    with pytest.raises(UsageError, match="draft_tokens"):
        cluster_of_spec(ClusterSpec(), machines)


def test_the_core_can_be_replayed_from_the_log(plan: Path, tmp_path: Path) -> None:
    log = tmp_path / "events.log"
    flags: list[str | Path]
    flags = ["simulate", "--trace", MOONCAKE, "--cluster", plan, "--event-log", log]
    run(*flags, "--limit", "50", "--no-prefix-cache")
    with log.open() as lines:
        assert all(step.same for step in replay(lines))
    refused = CliRunner().invoke(app, [str(flag) for flag in flags])
    assert "--no-prefix-cache" in refused.stderr


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--format", "carrier-pigeon"], "must be one of"),
        (["--speedup", "2", "--requests-per-s", "3"], "give one"),
        (["--scenario", "nowhere.yaml"], "cannot be read"),
        (["--model", "gpt-17"], "gpt-17"),
        (["--cluster", "nowhere"], "--cluster nowhere: there is no such file"),
        (["--profile", "nowhere.json"], "--profile nowhere.json: cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    plan: Path, flags: list[str], problem: str
) -> None:
    command = ["simulate", "--trace", str(AZURE), "--cluster", str(plan), *flags]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert problem in result.stderr


def test_traces_of_both_formats_begin_at_zero_and_can_be_hurried() -> None:
    azure, mooncake = read_trace(AZURE), read_trace(MOONCAKE)
    assert (len(azure), len(mooncake)) == (300, 200)
    assert azure[0].at_s == mooncake[0].at_s == 0.0
    assert (azure[0].prompt_tokens, azure[0].answer_tokens) == (374, 44)
    assert azure[1].at_s == pytest.approx(4.314579)
    assert mooncake[0].block_names[:3] == (0, 1, 2)
    assert len(mooncake[0].block_names) == 6758 // 512 + 1
    assert sped_up(azure, 2.0)[1].at_s == pytest.approx(4.314579 / 2.0)
    hurried = at_rate(azure, 50.0, seed=1)
    assert hurried == at_rate(azure, 50.0, seed=1)
    assert len(hurried) / hurried[-1].at_s == pytest.approx(50.0, rel=0.2)


def test_a_broken_trace_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('{"timestamp": 0, "input_length": 5, "output_length": 5}\n{"timestamp": 1}\n')
    with pytest.raises(UsageError, match="line 2"):
        read_trace(file)
    file.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="neither JSON lines nor columns"):
        read_trace(file)


def test_simulating_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, orchestrator.cli.simulate, orchestrator.simulator.building, "
        "orchestrator.simulator.page, orchestrator.simulator.simulation; "
        "print([name for name in ('torch', 'ray', 'vllm') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
