"""What a simulated worker knows of one request."""

from __future__ import annotations

from orchestrator.simulator.links import Flow


class Job:
    """One request in one worker.

    Attributes:
        handle: of the router's attempt.
        prompt_tokens: to be read, those of an earlier attempt's answer included.
        first_index: of the first token that is made here.
        answer_tokens: to be made here, the one at the end of the prompt included.
        hold_tokens: of KV that belong to it until it ends.
        priority: lower goes first.
        hands_off: the prompt is read for another worker.
        context_tokens: when it begins to decode.
        names: of the prefixes of the prompt's blocks, for the cache.
        live: the worker still has it.
        moves_to: the handle of the reservation that it is to go on in; 0: it stays.
        read_tokens: of the prompt, cached or read so far.
        cached_tokens: of the prompt, that need not be read.
        started_s, prefill_s: when reading began, and how long it took.
        flow: its state on the way to another worker.
        made_tokens: of the answer, when it began to decode; `told_tokens` the router knows of.
        begin_step, end_step, per_step: of its decoding; tokens in a step.
    """

    # What few jobs ever change is of the class: two of these are made for every request.
    live = True
    moves_to = 0
    read_tokens = 0
    cached_tokens = 0
    started_s = -1.0
    prefill_s = 0.0
    flow: Flow | None = None
    made_tokens = 0
    told_tokens = 0
    begin_step = -1
    end_step = -1
    per_step = 1.0

    def __init__(
        self,
        handle: int,
        prompt_tokens: int,
        first_index: int,
        answer_tokens: int,
        hold_tokens: int,
        priority: int,
        hands_off: bool,
        context_tokens: int,
        names: tuple[int, ...] = (),
    ) -> None:
        self.handle = handle
        self.prompt_tokens = prompt_tokens
        self.first_index = first_index
        self.answer_tokens = answer_tokens
        self.hold_tokens = hold_tokens
        self.priority = priority
        self.hands_off = hands_off
        self.context_tokens = context_tokens
        self.names = names

    def moving(self, step: int) -> Job:
        """What is left of it when it has stopped decoding at the end of a step, to go on elsewhere.

        The batch forgets the job itself only when it is not live any more.
        """
        made = self.made_by(step)
        left = Job(
            self.handle,
            self.prompt_tokens,
            self.first_index,
            self.answer_tokens,
            self.hold_tokens,
            self.priority,
            self.hands_off,
            self.context_tokens + made - self.made_tokens,
            self.names,
        )
        left.moves_to = self.moves_to
        left.read_tokens, left.cached_tokens = self.read_tokens, self.cached_tokens
        left.started_s, left.prefill_s = self.started_s, self.prefill_s
        left.made_tokens, left.told_tokens = made, self.told_tokens
        return left

    def go_on_from(self, other: Job) -> None:
        """Its state has come from another decode worker, with tokens made since the reservation."""
        more = other.first_index + other.made_tokens - self.first_index
        self.first_index += more
        self.context_tokens += more
        self.answer_tokens -= more

    @property
    def decodes(self) -> bool:
        return self.begin_step >= 0

    @property
    def unread_tokens(self) -> int:
        return self.prompt_tokens - self.read_tokens

    def made_by(self, step: int) -> int:
        """Tokens of the answer made here until the end of a decode step."""
        if step >= self.end_step:
            return self.answer_tokens
        steps = max(step - self.begin_step, 0)
        return self.made_tokens + int(steps * self.per_step + 1e-9)
