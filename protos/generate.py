"""Generates the Python stubs of every .proto, or with --check says which of them are stale.

Kept as a module, not a Makefile recipe, so that `make protos` and `make check` cannot drift apart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO_DIR = Path("protos/tandem/v1")


def generate(into: Path) -> None:
    """Write the stubs of every .proto of the repository below `into`; raise on a protoc error."""
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / PROTO_DIR).glob("*.proto"))
    well_known = files("grpc_tools") / "_proto"
    # The plugins are installed beside the interpreter, which need not be on the PATH.
    scripts = Path(sys.executable).parent
    plugins = [
        f"--plugin={name}={scripts / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    ]
    outputs = [f"--{kind}={into}" for kind in ("python_out", "grpc_python_out", "mypy_out")]
    code = protoc.main(
        [
            "protoc",
            f"-I{ROOT}",
            f"-I{well_known}",
            *plugins,
            *outputs,
            f"--mypy_grpc_out={into}",
            *sources,
        ]
    )
    if code != 0:
        raise SystemExit(f"protoc failed with exit status {code}")


def stale_stubs() -> list[str]:
    """Names of stubs that are missing, left over, or not what the .proto files generate now."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = {path.name: path.read_text() for path in (Path(scratch) / PROTO_DIR).glob("*_pb2*")}
    committed = {path.name: path.read_text() for path in (ROOT / PROTO_DIR).glob("*_pb2*")}
    return sorted(
        name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only report stale stubs")
    if parser.parse_args().check:
        stale = stale_stubs()
        if stale:
            sys.exit(f"stale stubs: {', '.join(stale)}; run `make protos`")
    else:
        generate(ROOT)


if __name__ == "__main__":
    main()
