"""`tandem why scale-3` and `tandem why scaling`: what the autoscaler decided, and why."""

from __future__ import annotations

from orchestrator.cli.terminal import print_json
from orchestrator.errors import UserError

ALL = "scaling"


def is_decision(name: str) -> bool:
    """Whether somebody asks about the autoscaler and not about a request."""
    return name == ALL or name.startswith("scale-")


def show_decisions(name: str, decisions: list[dict[str, object]], as_json: bool) -> None:
    """Print one decision with all it rests on, or a line for each. Raises UserError."""
    if name != ALL:
        decisions = [one for one in decisions if one["decision_id"] == name]
        if not decisions:
            raise UserError(
                f"decision {name!r} is not known", f"`tandem why {ALL}` lists those that are"
            )
    if as_json:
        print_json({"decisions": decisions})
        return
    if not decisions:
        print("the autoscaler has decided nothing yet")
    for one in decisions:
        lines = one["lines"]
        assert isinstance(lines, list)
        for line in lines if name != ALL else lines[:1]:
            print(line)
