"""`tandem load` against a whole cluster, as a person would run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.clusters import Cluster

pytestmark = pytest.mark.e2e

TRACE = Path(__file__).parents[1] / "data" / "azure_2023_conv_300.csv"


def test_a_trace_is_replayed_and_its_report_has_the_cluster_in_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    flags = ["--trace", str(TRACE), "--limit", "6", "--max-isl", "600", "--max-osl", "60"]
    run = cluster.tandem("load", *flags, "--speedup", "8", "--json", "--html", str(page))
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["failed"] == {}
    assert report["finished"] == report["requests"] > 0
    assert report["prompts"] == "text"
    assert report["acceptance"]["measured"] == "engine report"
    assert report["timeline"][-1]["decode_serving"] == 1
    assert page.read_text().count("<svg") >= 5


def test_speed_bench_reports_what_the_engine_accepted(cluster: Cluster) -> None:
    flags = ["--categories", "qa,writing", "--per-category", "1", "--osl", "16"]
    run = cluster.tandem(
        "load", "speed-bench", *flags, "--target", f"http://{cluster.http}", "--json"
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["answered"] == report["questions"] == 2
    assert report["acceptance_measured"] == "engine report"
    assert 1.0 <= report["acceptance_length"] <= 8.0
    assert set(report["acceptance_length_by_category"]) == {"qa", "writing"}
