"""From a file and flags to one validated spec whose paths no longer depend on the folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import yaml
from pydantic import ValidationError

import workers
from orchestrator.spec.errors import Path as KeyPath
from orchestrator.spec.errors import SpecError, explain
from orchestrator.spec.schema import ClusterSpec, ModelWithPools
from orchestrator.spec.yaml_file import read_yaml


def load_spec(
    path: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    flags: Mapping[str, str] | None = None,
) -> ClusterSpec:
    """The spec of a YAML file (or the defaults), with dotted-path overrides on top.

    `flags` names the command-line flag of an override, for messages. Relative paths in the file
    count from the file, relative paths in overrides from the working folder, and what exists in
    neither place from the installed package. Raises SpecError.
    """
    overrides = overrides or {}
    fields, lines = read_yaml(path) if path is not None else ({}, {})
    for key, value in overrides.items():
        _put(fields, key, value)
    spec = validated(fields, lines, flags, str(path) if path is not None else "")
    file_folder = path.resolve().parent if path is not None else Path.cwd()

    def folder_of(key: str) -> Path:
        return Path.cwd() if key in overrides else file_folder

    telemetry = spec.telemetry
    if telemetry.trace_file is not None:
        trace_file = folder_of("telemetry.trace_file") / telemetry.trace_file
        telemetry = telemetry.model_copy(update={"trace_file": str(trace_file)})
    security = spec.security
    if security.tls is not None:
        files = security.tls.model_dump(exclude_none=True)
        folder = folder_of("security.tls")
        paths = {name: str(folder / Path(file).expanduser()) for name, file in files.items()}
        security = security.model_copy(update={"tls": security.tls.model_copy(update=paths)})
    more = [one.model_copy(update=_found(one, lambda _: file_folder)) for one in spec.more_models]
    return spec.model_copy(
        update={
            "telemetry": telemetry,
            "security": security,
            "more_models": more,
            **_found(spec, folder_of),
        }
    )


def _found(
    spec: ClusterSpec | ModelWithPools, folder_of: Callable[[str], Path]
) -> dict[str, object]:
    """A model and its pools with whole paths."""
    pools = {
        role: pool.model_copy(
            update={
                "vllm": pool.vllm.model_copy(
                    update={"python": _program(pool.vllm.python, folder_of(f"{role}.vllm.python"))}
                )
            }
        )
        for role, pool in (("prefill", spec.prefill), ("decode", spec.decode))
    }
    model_path = find_model(spec.model.path, folder_of("model.path"))
    name = spec.model.name or model_path.name
    return {"model": spec.model.model_copy(update={"path": str(model_path), "name": name}), **pools}


def validated(
    fields: Mapping[str, object],
    lines: Mapping[KeyPath, int] | None = None,
    flags: Mapping[str, str] | None = None,
    source: str = "",
) -> ClusterSpec:
    """The spec with its paths as they were given. Raises SpecError that names every wrong field."""
    try:
        return ClusterSpec.model_validate(fields)
    except ValidationError as error:
        raise SpecError(explain(error, ClusterSpec, lines or {}, flags or {}, source)) from error


def find_model(path: str, folder: Path) -> Path:
    """Where a checkpoint named in a spec lies; the shipped one is found from any folder."""
    wanted = (folder / Path(path).expanduser()).resolve()
    shipped = Path(workers.__file__).resolve().parent.parent / path
    return shipped if not wanted.exists() and shipped.exists() else wanted


def _program(path: str, folder: Path) -> str:
    """A program of a spec; one without a folder is looked for on PATH. Links stay as they are: a
    virtual environment is told by the name that its Python is called by."""
    return str(folder / Path(path).expanduser()) if "/" in path else path


def dump_spec(spec: ClusterSpec) -> str:
    """The spec as YAML that `load_spec` reads back to an equal one."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)


def _put(fields: dict[str, object], key: str, value: object) -> None:
    *parents, last = key.split(".")
    here = fields
    for part in parents:
        below = here.get(part)
        if below is None:
            below = here[part] = {}
        if not isinstance(below, dict):
            # The schema will say what is wrong with the file; an override cannot mend it.
            return
        here = below
    here[last] = value
