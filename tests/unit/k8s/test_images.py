"""What the Dockerfiles promise: small, as a user, nothing written, the core compiled.

Nothing here builds them; what can be read from them is held to what pods expect.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from k8s.operator.objects import mapping, sequence, text
from k8s.operator.render import everything
from k8s.operator.render.parts import POD_SECURITY
from k8s.operator.service import Service
from orchestrator.spec import ClusterSpec

_IMAGES = sorted((Path(__file__).parents[3] / "k8s" / "images").glob("*.Dockerfile"))


def _instructions(path: Path) -> list[list[tuple[str, str]]]:
    """Of each stage: its instructions, in order, with continued lines joined."""
    content = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    stages: list[list[tuple[str, str]]] = []
    for line in content.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        name, _, rest = line.partition(" ")
        if name == "FROM":
            stages.append([])
        stages[-1].append((name, " ".join(rest.split())))
    return stages


def _said(stage: list[tuple[str, str]], name: str) -> str:
    return "\n".join(rest for what, rest in stage if what == name)


@pytest.mark.parametrize("path", _IMAGES, ids=lambda path: path.stem)
def test_the_last_stage_has_no_build_tools_and_runs_as_a_user(path: Path) -> None:
    build, final = _instructions(path)
    assert "pip" not in _said(final, "RUN")
    user = f"{POD_SECURITY['runAsUser']}:{POD_SECURITY['runAsGroup']}"
    assert _said(final, "USER") == user
    assert _said(final, "COPY") == "--from=build /opt/tandem /opt/tandem"
    # Bytecode would be written beside the code, which is only read.
    assert "PYTHONDONTWRITEBYTECODE=1" in _said(final, "ENV")
    assert _said(build, "FROM").split()[0] == _said(final, "FROM")  # the same Python in both


@pytest.mark.parametrize("path", _IMAGES, ids=lambda path: path.stem)
def test_the_core_is_compiled_into_the_image_or_there_is_none(path: Path) -> None:
    build, final = _instructions(path)
    folder = re.compile(r"TANDEM_COMPILED=(\S+)")
    made, found = (folder.search(_said(stage, "ENV")) for stage in (build, final))
    assert made is not None
    assert found is not None
    assert made[1] == found[1]
    assert made[1].startswith("/opt/tandem/")  # what the last stage copies
    steps = [rest for what, rest in build if what == "RUN"]
    # After the code, of which it is a digest, and not left out when it fails.
    assert "python -m workers.compile --required" in steps[-1]
    assert steps[-2] == "pip install --no-deps ."


def test_the_modules_that_pods_run_are_there() -> None:
    """By what is rendered: `python -m MODULE` of containers and hooks."""
    service = Service("demo", "default", "u", 1, ClusterSpec(), "image")
    found = set(re.findall(r"'-m', '([a-z_.]+)'", str(everything(service))))
    assert len(found) >= 3
    assert [name for name in found if importlib.util.find_spec(name) is None] == []


def test_probes_and_hooks_need_no_program_that_the_images_lack() -> None:
    service = Service("demo", "default", "u", 1, ClusterSpec(), "image")
    installed = [_said(_instructions(path)[-1], "RUN") for path in _IMAGES]
    for manifest in everything(service):
        if manifest["kind"] == "RayService":
            # KubeRay starts Ray by bash, and asks after its health by wget.
            assert all({"bash", "wget"} <= set(run.split()) for run in installed)
        elif manifest["kind"] == "Deployment" and "router" in text(manifest, "metadata", "name"):
            [container] = sequence(manifest, "spec", "template", "spec", "containers")
            command = sequence(mapping(container, "lifecycle", "preStop", "exec"), "command")
            assert command[0] == "python"
