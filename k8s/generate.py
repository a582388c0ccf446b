"""Writes the CustomResourceDefinition, or with --check says which of its copies are stale.

The chart carries a copy of its own, because Helm packages only what lies below the chart.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from k8s.crds.definition import definition

_HERE = Path(__file__).resolve().parent
COPIES = (
    _HERE / "crds" / "tandemservices.yaml",
    _HERE / "chart" / "crds" / "tandemservices.yaml",
)
_HEADER = "# Generated from orchestrator.spec.ClusterSpec: `python -m k8s.generate`.\n"


class _Plain(yaml.SafeDumper):
    """Writes shared parts out in full: anchors are no help to a reader."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def rendered() -> str:
    """The manifest as YAML."""
    return _HEADER + yaml.dump(definition(), Dumper=_Plain, sort_keys=False, width=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only report stale copies")
    text = rendered()
    if parser.parse_args().check:
        stale = [
            str(path.relative_to(_HERE.parent))
            for path in COPIES
            if not path.is_file() or path.read_text(encoding="utf-8") != text
        ]
        if stale:
            sys.exit(f"stale: {', '.join(stale)}; run `python -m k8s.generate`")
        return
    for path in COPIES:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
