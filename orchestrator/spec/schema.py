"""The shape of a cluster and the rules that hold whatever is built.

Defaults are what works out of the box, so `ClusterSpec()` is the cluster of `tandem up` without
a file. What the schema allows but no code serves yet is refused by `unbuilt.py`, not here: a spec
must stay valid when the feature arrives.
"""

from __future__ import annotations

import hashlib
import string
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from orchestrator.spec.kubernetes import KubernetesSpec
from orchestrator.spec.section import Section
from workers.engine.vllm.flags import OWN_FLAGS, Sizes, argument_problem, layout_problems

_LEAST_KEY_CHARACTERS = 16
MOST_KEY_CHARACTERS = 256
SHIPPED_MODEL = "workers/checkpoints/tandem-tiny"
OWN_VLLM_FLAGS = frozenset(OWN_FLAGS)

Engine = Literal["native", "vllm", "simulated"]
Dtype = Literal["float32", "bfloat16"]
ClassName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]


def _check_address(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("must be host:port with a port from 0 to 65535, such as 127.0.0.1:50051")
    return address


def _check_store(store: str) -> str:
    if store != "embedded" and not store.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must be embedded, or a URL such as redis://host:6379/0")
    return store


def _check_ray(address: str) -> str:
    return address if address == "local" else _check_address(address)


Address = Annotated[str, AfterValidator(_check_address)]
RayAddress = Annotated[str, AfterValidator(_check_ray)]
RayResource = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$")]
Store = Annotated[str, AfterValidator(_check_store)]


class ModelSpec(Section):
    """Which checkpoint is served, and under which name clients know it."""

    path: Annotated[str, StringConstraints(min_length=1)] = SHIPPED_MODEL
    name: str = ""
    dtype: Dtype = "float32"

    @model_validator(mode="before")
    @classmethod
    def _name_after_folder(cls, fields: object) -> object:
        if isinstance(fields, dict) and not fields.get("name"):
            path = fields.get("path", SHIPPED_MODEL)
            if isinstance(path, str):
                return {**fields, "name": PurePath(path).name}
        return fields


class ClassSpec(Section):
    """Latency targets that a class of requests was promised, and its share under contention."""

    ttft_ms: PositiveFloat
    itl_ms: PositiveFloat
    weight: PositiveFloat = 1.0


class WorkerRange(Section):
    """How many workers a pool may have; `min == max` fixes it."""

    min: NonNegativeInt = 1
    max: PositiveInt = 1

    @model_validator(mode="before")
    @classmethod
    def _max_follows_min(cls, fields: object) -> object:
        if isinstance(fields, dict) and "max" not in fields and isinstance(fields.get("min"), int):
            return {**fields, "max": max(1, fields["min"])}
        return fields

    @model_validator(mode="after")
    def _ordered(self) -> WorkerRange:
        if self.min > self.max:
            raise ValueError(f"min {self.min} must not be above max {self.max}")
        return self


class Resources(Section):
    """What each rank of a worker takes of a machine."""

    cpu: PositiveInt = 1
    gpu: NonNegativeInt = 0


class PrefillLayout(Section):
    """How a prefill worker shards the model over its ranks."""

    tp: PositiveInt = 1

    @property
    def ranks(self) -> int:
        return self.tp


class DecodeLayout(Section):
    """How a decode worker shards attention (KVP x TPA) and experts (TPF x EP) over its ranks."""

    kvp: PositiveInt = 1
    tpa: PositiveInt = 1
    ep: PositiveInt = 1
    tpf: PositiveInt = 1
    interleave: PositiveInt = 16  # consecutive tokens that go to one KVP rank
    hop_b: bool = True  # attend for one half of a batch while the other half is exchanged

    @property
    def ranks(self) -> int:
        return self.kvp * self.tpa

    @model_validator(mode="after")
    def _same_ranks(self) -> DecodeLayout:
        if self.kvp * self.tpa != self.tpf * self.ep:
            raise ValueError(
                f"kvp x tpa = {self.kvp} x {self.tpa} = {self.kvp * self.tpa} must equal "
                f"tpf x ep = {self.tpf} x {self.ep} = {self.tpf * self.ep}: "
                "attention and experts use the same ranks"
            )
        return self


def _check_vllm_argument(argument: str) -> str:
    problem = argument_problem(argument)
    if problem is not None:
        raise ValueError(problem)
    return argument


VllmArgument = Annotated[
    str, StringConstraints(max_length=1024), AfterValidator(_check_vllm_argument)
]


class VllmSpec(Section):
    """What only vLLM is told: the Python that has it, and arguments as for `vllm serve`."""

    python: str = ""  # empty: Tandem's own
    args: Annotated[list[VllmArgument], Field(max_length=64)] = Field(default_factory=list)


class Pool(Section):
    """What the two pools have in common."""

    engine: Engine = "native"
    vllm: VllmSpec = Field(default_factory=VllmSpec)
    workers: WorkerRange = Field(default_factory=WorkerRange)
    resources: Resources = Field(default_factory=Resources)
    kv_tokens: PositiveInt = 65536  # tokens of KV that one worker has memory for
    max_requests: PositiveInt = 32  # requests that one worker holds at once
    # An engine step that takes longer will not end, and the worker is replaced; the first steps,
    # which compile kernels, may take ten times as long.
    step_limit_s: PositiveFloat = 60.0


class PrefillPool(Pool):
    """The workers that read prompts; without any, decode workers read them too."""

    layout: PrefillLayout = Field(default_factory=PrefillLayout)


class DecodePool(Pool):
    """The workers that write answers."""

    layout: DecodeLayout = Field(default_factory=DecodeLayout)
    draft_tokens: int | Literal["auto"] = "auto"

    @field_validator("draft_tokens", mode="before")
    @classmethod
    def _auto_or_few(cls, count: object) -> object:
        if count != "auto" and (type(count) is not int or not 0 <= count <= 7):
            raise ValueError("must be auto, or a number from 0 to 7")
        return count

    @field_validator("workers")
    @classmethod
    def _at_least_one(cls, workers: WorkerRange) -> WorkerRange:
        if workers.min < 1:
            raise ValueError("min must be at least 1: nothing can be answered without a decoder")
        return workers


class RaySpec(Section):
    """Which Ray places the workers: `local`, one of our own that ends with the cluster, or the
    address of one that runs already, whose nodes may be other machines. Of the custom resource in
    `prefill_on` or `decode_on` each worker of that pool takes 1, so nodes without it have none."""

    address: RayAddress = "local"
    prefill_on: RayResource | None = None
    decode_on: RayResource | None = None

    @property
    def joined(self) -> bool:
        """Whether the workers may be on other machines."""
        return self.address != "local"

    @model_validator(mode="after")
    def _places_of_a_joined_ray(self) -> RaySpec:
        for field, resource in (("prefill_on", self.prefill_on), ("decode_on", self.decode_on)):
            if resource is not None and not self.joined:
                raise ValueError(
                    f"{field} {resource}: our own Ray has no such resource; set address to that "
                    "of a Ray whose nodes have it"
                )
        return self


class RouterSpec(Section):
    """Where clients reach the cluster; port 0 takes any free one."""

    processes: PositiveInt = 1
    grpc: Address = "127.0.0.1:50051"
    http: Address = "127.0.0.1:8000"

    @model_validator(mode="after")
    def _apart(self) -> RouterSpec:
        if self.grpc == self.http and not self.grpc.endswith(":0"):
            raise ValueError(f"grpc and http cannot both listen on {self.grpc}")
        return self


class AutoscalingSpec(Section):
    """Whether and how often pool sizes follow the traffic."""

    mode: Literal["active", "advisory", "off"] = "off"
    period_s: PositiveFloat = 5.0
    role_flip: bool = True
    cold_start_s: PositiveFloat = 30.0  # from asking for a worker to its serving
    season_s: PositiveFloat | None = None  # after which traffic repeats, such as a day; null: none

    @field_validator("mode", mode="before")
    @classmethod
    def _yaml_off(cls, mode: object) -> object:
        # YAML 1.1 reads a bare `off` as false.
        return "off" if mode is False else mode


class TelemetrySpec(Section):
    """Where spans go; both null turns tracing off."""

    otlp: str | None = None
    trace_file: str | None = None


class TlsSpec(Section):
    """PEM files of the routers; with `client_ca` clients need a certificate that it signed."""

    cert: str
    key: str
    client_ca: str | None = None


def _digest_of(key: object) -> object:
    """A key as its digest, so that a spec in memory, or shown, does not hold it."""
    if not isinstance(key, str):
        return key
    if key.startswith("sha256:"):
        digest = key.removeprefix("sha256:").lower()
        if len(digest) != 64 or set(digest) - set(string.hexdigits):
            raise ValueError("sha256: must be followed by 64 hexadecimal digits")
        return f"sha256:{digest}"
    if len(key) < _LEAST_KEY_CHARACTERS:
        # Without its value, which pydantic would show otherwise.
        raise PydanticCustomError(
            "short_key", f"the key is shorter than {_LEAST_KEY_CHARACTERS} characters"
        )
    if len(key) > MOST_KEY_CHARACTERS:
        raise PydanticCustomError(
            "long_key", f"the key is longer than {MOST_KEY_CHARACTERS} characters"
        )
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


KeyDigest = Annotated[str, BeforeValidator(_digest_of)]


class SecuritySpec(Section):
    """Who may talk to the cluster. `api_keys` has each client's key, or `sha256:` and its digest,
    under the client's name."""

    tls: TlsSpec | None = None
    api_keys: Annotated[dict[ClassName, KeyDigest], Field(min_length=1, max_length=256)] | None = (
        None
    )


class TenantSpec(Section):
    """A client's share among the others of a class, and its limit in tokens, prompt and answer."""

    weight: PositiveFloat = 1.0
    tokens_per_s: PositiveFloat | None = None
    burst_tokens: PositiveInt = 100_000


def _default_classes() -> dict[str, ClassSpec]:
    return {
        "interactive": ClassSpec(ttft_ms=500, itl_ms=40, weight=4),
        "batch": ClassSpec(ttft_ms=10_000, itl_ms=200, weight=1),
    }


def _check_engines(prefill: PrefillPool, decode: DecodePool) -> None:
    """Raise ValueError for pools of which one cannot go on from the state of the other."""
    if prefill.engine == decode.engine:
        return
    why = "vLLM lays state out in its own way and moves it with its own connector"
    if "simulated" in (prefill.engine, decode.engine):
        why = "a simulated engine has none"
    raise ValueError(
        f"prefill.engine {prefill.engine} cannot hand state to decode.engine {decode.engine}: "
        f"{why}; set both to {decode.engine}, or both to {prefill.engine}"
    )


def _check_vllm_layouts(prefill: PrefillPool, decode: DecodePool) -> None:
    """Raise ValueError for what vLLM would refuse minutes later."""
    layout, ranks = decode.layout, prefill.layout.tp
    if decode.engine != "vllm":
        return
    problems = layout_problems(
        "decode.layout", Sizes(layout.kvp, layout.tpa, layout.ep, layout.tpf)
    )
    if max(ranks, layout.ranks) % min(ranks, layout.ranks):
        problems.append(
            f"prefill.layout.tp {ranks} and the {layout.ranks} ranks of decode.layout: vLLM's "
            "NIXL connector wants one to be a multiple of the other; set tp to "
            f"{layout.ranks}"
        )
    if problems:
        raise ValueError("; ".join(problems))


class ModelWithPools(Section):
    """One more model of a cluster, with pools of its own; behind the same router."""

    model: ModelSpec
    prefill: PrefillPool = Field(default_factory=PrefillPool)
    decode: DecodePool = Field(default_factory=DecodePool)

    @model_validator(mode="after")
    def _pools_can_work_together(self) -> ModelWithPools:
        _check_engines(self.prefill, self.decode)
        _check_vllm_layouts(self.prefill, self.decode)
        return self


class ClusterSpec(Section):
    """One cluster: the model, the two pools, and everything around them."""

    model: ModelSpec = Field(default_factory=ModelSpec, validate_default=True)
    store: Store = "embedded"
    classes: dict[ClassName, ClassSpec] = Field(
        default_factory=_default_classes, min_length=1, max_length=64
    )
    tenants: dict[ClassName, TenantSpec] = Field(default_factory=dict, max_length=256)
    prefill: PrefillPool = Field(default_factory=PrefillPool)
    decode: DecodePool = Field(default_factory=DecodePool)
    more_models: Annotated[list[ModelWithPools], Field(max_length=16)] = Field(default_factory=list)
    ray: RaySpec = Field(default_factory=RaySpec)
    router: RouterSpec = Field(default_factory=RouterSpec)
    autoscaling: AutoscalingSpec = Field(default_factory=AutoscalingSpec)
    telemetry: TelemetrySpec = Field(default_factory=TelemetrySpec)
    security: SecuritySpec = Field(default_factory=SecuritySpec)
    kubernetes: KubernetesSpec = Field(default_factory=KubernetesSpec)

    @model_validator(mode="after")
    def _ranks_split_evenly(self) -> ClusterSpec:
        for role, ranks, pods in (
            ("prefill", self.prefill.layout.ranks, self.kubernetes.prefill.pods_per_worker),
            ("decode", self.decode.layout.ranks, self.kubernetes.decode.pods_per_worker),
        ):
            if ranks % pods:
                raise ValueError(
                    f"the {ranks} ranks of {role}.layout do not split evenly over "
                    f"kubernetes.{role}.pods_per_worker {pods}"
                )
        return self

    @model_validator(mode="after")
    def _tenants_have_keys(self) -> ClusterSpec:
        without = sorted(set(self.tenants) - set(self.security.api_keys or {}))
        if without:
            raise ValueError(
                f"tenants: {', '.join(without)} has no key in security.api_keys, "
                "so no request can be told to be its own"
            )
        return self

    @model_validator(mode="after")
    def _store_that_all_machines_reach(self) -> ClusterSpec:
        if self.ray.joined and self.store == "embedded":
            raise ValueError(
                f"store embedded: only this machine reaches it, and with ray.address "
                f"{self.ray.address} workers may be on others; set store to the URL of a Redis or "
                "Valkey that all of them reach, such as redis://host:6379/0"
            )
        return self

    @model_validator(mode="after")
    def _pools_can_work_together(self) -> ClusterSpec:
        _check_engines(self.prefill, self.decode)
        _check_vllm_layouts(self.prefill, self.decode)
        return self

    @model_validator(mode="after")
    def _each_model_has_a_name(self) -> ClusterSpec:
        names = [self.model.name, *(one.model.name for one in self.more_models)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"model.name {', '.join(twice)} is that of several models, and requests choose by "
                "it; give each of model and more_models a name of its own"
            )
        return self

    def by_model(self) -> list[ClusterSpec]:
        """This cluster as if it had one model, for each of them; that of `model` first."""
        alone: dict[str, list[ModelWithPools]] = {"more_models": []}
        return [self.model_copy(update=alone)] + [
            self.model_copy(
                update={"model": one.model, "prefill": one.prefill, "decode": one.decode, **alone}
            )
            for one in self.more_models
        ]
