"""What papers report beside what our performance model and planner give for the same question.

`make literature` writes `docs/literature.md` from the checks here; tests hold every check to the
range that it states.
"""
