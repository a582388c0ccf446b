"""How many workers of each kind there should be: where an autoscaling policy goes.

A policy is a pure function of what it observes, called every period with virtual time as it would
be with real time (`orchestrator/autoscaler/`). Without one, what decides is whoever wrote the
cluster's file and the scenario: whatever was wanted is wanted still, workers that die are replaced.
"""

from __future__ import annotations

from orchestrator.autoscaler.observation import Change, CountPolicy, Observation

__all__ = ["Change", "CountPolicy", "Observation"]
