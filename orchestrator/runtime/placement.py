"""What each worker takes of a Ray node, and thereby on which nodes it may be."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.spec import ClusterSpec
from workers.registry import Role


@dataclass(frozen=True, slots=True)
class Placement:
    """The needs of one worker, of all its ranks together."""

    cpus: int
    gpus: int
    place_on: str | None
    grouped: bool

    @classmethod
    def of(cls, spec: ClusterSpec, role: Role, place_on: str | None = None) -> Placement:
        """`place_on` names the custom resource instead of the spec's `ray` section."""
        pool = spec.prefill if role == "prefill" else spec.decode
        named = spec.ray.prefill_on if role == "prefill" else spec.ray.decode_on
        return cls(
            cpus=pool.layout.ranks * pool.resources.cpu,
            gpus=pool.layout.ranks * pool.resources.gpu,
            place_on=place_on or named,
            grouped=pool.layout.ranks > 1,
        )

    @property
    def actor_options(self) -> dict[str, object]:
        """As Ray takes them for an actor."""
        options: dict[str, object] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.place_on is not None:
            options["resources"] = {self.place_on: 1}
        return options

    @property
    def bundles(self) -> list[dict[str, float]] | None:
        """A placement group of one bundle for a worker of several ranks; None for one rank."""
        if not self.grouped:
            return None
        bundle: dict[str, float] = {"CPU": self.cpus}
        if self.gpus:
            bundle["GPU"] = self.gpus
        if self.place_on is not None:
            bundle[self.place_on] = 1
        return [bundle]
