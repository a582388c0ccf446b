"""vLLM's part, played by a list: it keeps what it is told, and answers what a test writes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from workers.engine.chosen import Chosen
from workers.engine.commands import Command, Sampling, WorkItem
from workers.engine.events import StepEvents
from workers.engine.surroundings import Identity, Surroundings
from workers.engine.vllm.core import CoreEnd, CoreFacts, CoreRequest, CoreRow, CoreStep
from workers.engine.vllm.engine import VllmEngine

FACTS = CoreFacts(
    version="0",
    kv_tokens=1024,
    block_tokens=16,
    max_model_tokens=512,
    vocab_size=100,
    state_bytes_per_token=8.0,
    hybrid=False,
)
LEASE_S = 10.0


@dataclass
class ScriptedCore:
    """Takes every request but those with the token 99."""

    added: list[CoreRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    let_gone: list[str] = field(default_factory=list)

    def add(self, request: CoreRequest) -> None:
        if 99 in request.token_ids:
            raise ValueError("token 99 is not for me")
        self.added.append(request)

    def abort(self, name: str) -> None:
        self.aborted.append(name)

    def let_go(self, transfer: str) -> None:
        self.let_gone.append(transfer)


class Worker:
    """One vLLM worker on virtual time; `mail` is what workers have said to each other."""

    def __init__(self, name: str, mail: list[tuple[str, bytes]], max_requests: int = 4) -> None:
        self.now_s = 100.0
        self.core = ScriptedCore()
        self.engine = VllmEngine(
            Surroundings(
                Identity(name, "vllm-0-f", 0, name),
                lambda address, message: mail.append((address, message)),
                lambda: self.now_s,
                random.Random(1),
            ),
            FACTS,
            max_requests,
            LEASE_S,
            self.core,
        )

    def tell(self, command: Command) -> StepEvents:
        self.engine.handle(command)
        return self.engine.take_events()

    def step(
        self,
        *token_ids: int,
        end: CoreEnd | None = None,
        transfer: str = "",
        kv_share: float = 0.0,
        name: str = "",
        pulled: tuple[int, float] | None = None,
    ) -> StepEvents:
        """vLLM makes these tokens for the request that it was given last."""
        row = CoreRow(
            name or self.core.added[-1].name,
            tuple(Chosen(token_id) for token_id in token_ids),
            end,
            transfer,
        )
        self.engine.stepped(CoreStep((row,), kv_share, (pulled,) if pulled else ()))
        return self.engine.take_events()


def item(key: int, made: int = 0, **sampling: object) -> WorkItem:
    fields: dict[str, object] = {"max_tokens": 8, **sampling}
    return WorkItem(
        key,
        f"r{key}",
        Sampling(**fields),  # type: ignore[arg-type]
        4,
        generated_tokens=made,
    )


def deliver(mail: list[tuple[str, bytes]], *workers: Worker) -> None:
    """Take all letters to whom they are for; those to others are lost."""
    while mail:
        address, message = mail.pop(0)
        for worker in workers:
            if worker.engine._identity.address == address:
                worker.engine.arrived(message)
