"""Runs a recorded event log again: `python -m router.replay FILE`.

Prints each event with what came of it, and exits with 1 when that is not what came of it at first.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from router.core.event_log import EventLogError, replay


def main(arguments: list[str] | None = None) -> int:
    """Replay one log; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path, help="what a router wrote with event_log in its config")
    parser.add_argument("--quiet", action="store_true", help="print only what came out otherwise")
    options = parser.parse_args(arguments)
    same = True
    try:
        with options.log.open() as lines:
            for step in replay(lines):
                same = same and step.same
                if options.quiet and step.same:
                    continue
                mark = "" if step.same else "  (came out otherwise)"
                print(f"{step.now_s:.6f} {step.event}{mark}")  # noqa: T201 - its purpose
                for instruction in step.instructions:
                    print(f"    {instruction}")  # noqa: T201
    except EventLogError as error:
        sys.exit(f"{options.log}: {error}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
