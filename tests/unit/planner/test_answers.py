"""What people and programs see of a plan."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.planner.labels import chosen_label, labels
from orchestrator.planner.picture import drawing, page
from orchestrator.planner.plan import make_plan
from orchestrator.planner.png import png
from orchestrator.planner.report import document
from orchestrator.planner.words import summary_lines
from tests.unit.planner.questions import question

_RUNNER = CliRunner()
_PLAN = ["plan", "--model", "nemotron-3-super", "--hardware", "h200", "--gpus", "16"]
_LENGTHS = ["--isl", "8192", "--osl", "1024"]


def test_the_document_is_json_and_names_units() -> None:
    answer = json.loads(json.dumps(document(make_plan(question()), 0.1)))
    assert answer["feasible"] is True
    assert answer["best"]["prefill"]["layout"]["gpus"] >= 1
    assert answer["best"]["itl_ms"] <= 30
    assert answer["frontier"][0].keys() >= {
        "tokens_per_s_user",
        "tokens_per_s_gpu",
        "ctx_gen_ratio",
    }


def test_an_infeasible_question_says_why_in_the_document_and_in_words() -> None:
    plan = make_plan(question(ttft_ms=1.0))
    assert document(plan, 0.1)["feasible"] is False
    assert summary_lines(plan)[0].startswith("Not feasible. TTFT: reading a prompt of 8192 tokens")


def test_the_picture_is_a_drawing_of_both_curves_with_axes() -> None:
    plan = make_plan(question())
    root = ElementTree.fromstring(drawing(plan))
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}polyline")) == 2
    words = " ".join(text.text or "" for text in root.iter(f"{space}text"))
    assert "interactivity: tokens/s that one user sees" in words
    assert "colocated" in words
    curve = root.findall(f"{space}polyline")[1].attrib["points"].split()
    assert len(curve) == len(plan.frontier)
    assert page(plan).startswith("<!doctype html>")


def test_the_picture_says_which_layouts_and_ratio_make_its_points() -> None:
    plan = make_plan(question())
    written = "".join(ElementTree.fromstring(drawing(plan)).itertext())
    chosen = chosen_label(plan)
    assert chosen is not None
    assert plan.chosen is not None
    assert f"ctx:gen {plan.chosen.gpu_ratio:.2f}" in chosen.text
    assert str(plan.chosen.decode.layout) in chosen.text
    others = labels(plan)
    assert 2 <= len(others) <= 5
    for label in (chosen, *others):
        assert "".join(label.text.split()) in "".join(written.split())
    users = [label.user for label in others]
    assert users == sorted(users)


@pytest.mark.parametrize(
    ("model", "hardware"), [("nemotron-3-super", "h200"), ("llama-3.1-405b", "h100")]
)
def test_the_png_is_a_picture_that_is_not_empty(model: str, hardware: str) -> None:
    devices = 16 if hardware == "h200" else 2
    data = png(make_plan(question(model, hardware, devices)))
    with Image.open(io.BytesIO(data)) as image:
        assert image.width >= 1000
        assert image.height >= 600
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10


def test_without_any_candidate_the_picture_says_so() -> None:
    assert "nothing to draw" in drawing(make_plan(question("llama-3.1-405b", "h100", 2)))


def test_the_command_prints_one_document_and_writes_the_picture(tmp_path: Path) -> None:
    picture = tmp_path / "plan.html"
    result = _RUNNER.invoke(app, [*_PLAN, *_LENGTHS, "--plot", str(picture), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["best"]["gpus"] <= 16
    assert "<svg" in picture.read_text()


def test_the_command_writes_a_png(tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    result = _RUNNER.invoke(app, [*_PLAN, *_LENGTHS, "--plot", str(picture), "--json"])
    assert result.exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_says_in_words_what_to_run() -> None:
    result = _RUNNER.invoke(app, [*_PLAN, *_LENGTHS])
    assert result.exit_code == 0
    assert "prefill workers of" in result.stdout
    assert "Why not more" in result.stdout


def test_an_infeasible_plan_ends_with_a_status_of_its_own() -> None:
    result = _RUNNER.invoke(app, [*_PLAN, *_LENGTHS, "--itl-ms", "0.01", "--json"])
    assert result.exit_code == 3
    assert json.loads(result.stdout)["obstacle"]["field"] == "itl_ms"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--plot", "x.pdf", *_LENGTHS], "pictures are written as .html, .png or .svg"),
        ([], "give --isl and --osl"),
        (["--trace", "nowhere.csv"], "nowhere.csv: cannot be read"),
        ([*_LENGTHS, "--profile", "nowhere.json"], "nowhere.json: cannot be read"),
    ],
)
def test_wrong_flags_are_usage_errors(flags: list[str], says: str) -> None:
    result = _RUNNER.invoke(app, [*_PLAN, *flags])
    assert result.exit_code == 2
    assert says in result.stderr


def test_planning_imports_neither_torch_nor_ray_nor_matplotlib() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from orchestrator.cli.main import app\n"
        f"result = CliRunner().invoke(app, {[*_PLAN, *_LENGTHS, '--json']!r})\n"
        "assert result.exit_code == 0, result.output\n"
        "assert not {'torch', 'ray', 'transformers', 'matplotlib'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
