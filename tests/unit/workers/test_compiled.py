"""Machine code: found for its very sources only, and else everything is interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers import compile as compiling
from workers import compiled

_SHOW = """
import orchestrator.simulator.worker as simulator
import router.core.lifecycle as lifecycle
from workers import compiled
interpreted = [module.__file__.endswith(".py") for module in (lifecycle, simulator)]
print(compiled.is_compiled(), *interpreted)
"""
# Everything that a core is told and answers: two workers, one of which drains.
_DECIDE = """
from orchestrator.bench.simulator.speed import bench_cluster, bench_traffic
from orchestrator.simulator.scenario import Moment
from orchestrator.simulator.simulation import Simulation
from workers.compiled import is_compiled

cluster, lines = bench_cluster(20), []
trace = bench_traffic(cluster, 300)
moments = (
    Moment(2.0, "drain", worker="decode-0"),
    Moment(4.0, "resume", worker="decode-0"),
    Moment(5.0, "kill", worker="decode-1"),
)
watch = lambda event, now_s, instructions: lines.append((now_s, event, instructions))
Simulation(cluster, trace, moments, watch=watch).run()
print(is_compiled(), *lines, sep="\\n")
"""


def _run(*arguments: str, cache: Path) -> str:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    environment.pop("TANDEM_COMPILED", None)
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_any_change_of_the_sources_gives_another_name(tmp_path: Path) -> None:
    core = tmp_path / "router" / "core"
    core.mkdir(parents=True)
    (core / "one.py").write_text("A = 1\n")
    first = compiled.digest(tmp_path)
    assert compiled.digest(tmp_path) == first
    (core / "one.py").write_text("A = 2\n")
    second = compiled.digest(tmp_path)
    (core / "two.py").write_text("")
    assert len({first, second, compiled.digest(tmp_path)}) == 3


def test_what_is_left_out_of_a_package_gives_the_same_name(tmp_path: Path) -> None:
    core, engine = tmp_path / "router" / "core", tmp_path / "workers" / "engine"
    core.mkdir(parents=True)
    engine.mkdir(parents=True)
    before = compiled.digest(tmp_path)
    (core / "audit.py").write_text("A = 1\n")
    (engine / "interface.py").write_text("A = 1\n")
    assert compiled.digest(tmp_path) == before


def test_every_part_that_is_compiled_is_there() -> None:
    names = {".".join(path.relative_to(compiled.ROOT).parts) for path in compiled.compiled_files()}
    for part in compiled.PARTS:
        folder = compiled.ROOT.joinpath(*part.package.split("."))
        assert all((folder / f"{name}.py").is_file() for name in part.but | part.only)
        assert any(name.startswith(f"{part.package}.") for name in names)


def test_where_nothing_was_compiled_or_it_is_broken_the_sources_are_run(tmp_path: Path) -> None:
    assert _run("-c", _SHOW, cache=tmp_path) == "False True True\n"
    folder = tmp_path / "tandem" / "compiled" / compiled.digest()
    core = folder / "router" / "core"
    core.mkdir(parents=True)
    (folder / f"tandem__mypyc{compiled.SUFFIX}").write_bytes(b"not machine code")
    (core / f"lifecycle{compiled.SUFFIX}").write_bytes(b"not machine code")
    assert _run("-c", _SHOW, cache=tmp_path) == "False True True\n"


def test_without_a_compiler_the_step_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TANDEM_COMPILED", str(tmp_path))
    monkeypatch.setattr(compiling, "_BUILD", "import sys; sys.exit('no gcc here')")
    monkeypatch.setattr(sys, "argv", ["compile"])
    compiling.main()
    assert "stay interpreted: no gcc here" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["compile", "--required"])
    with pytest.raises(SystemExit) as ended:
        compiling.main()
    assert ended.value.code == 1


@pytest.mark.full
def test_machine_code_decides_as_the_sources_do(tmp_path: Path) -> None:
    interpreted = _run("-c", _DECIDE, cache=tmp_path)
    assert "are compiled" in _run("-m", "workers.compile", cache=tmp_path)
    assert _run("-c", _SHOW, cache=tmp_path) == "True False False\n"
    machine = _run("-c", _DECIDE, cache=tmp_path)
    assert (interpreted[:5], machine[:4]) == ("False", "True")
    assert interpreted[5:] == machine[4:]
