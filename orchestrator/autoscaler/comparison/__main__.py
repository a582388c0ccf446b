"""`python -m orchestrator.autoscaler.comparison PAGE.md`: compares and writes the report."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.autoscaler.comparison.cases import CASES
from orchestrator.autoscaler.comparison.compare import Runs, compare
from orchestrator.autoscaler.comparison.page import write_report
from orchestrator.cli.terminal import note


def main() -> None:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="the Markdown file; plots go beside it")
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"))
    parser.add_argument(
        "--results", type=Path, default=Path("autoscaling-runs.json"), help="what was run so far"
    )
    parser.add_argument("--only", nargs="*", help="names of cases")
    parser.add_argument("--no-run", action="store_true", help="write what the results have")
    given = parser.parse_args()
    cases = [one for one in CASES if not given.only or one.name in given.only]
    runs = Runs(given.results)
    if not given.no_run:
        compare(cases, given.traces, runs, note)
    write_report(given.page, CASES, runs)


if __name__ == "__main__":
    main()
