"""What the types of the spec cannot say: the cross-field rules, in CEL, checked at admission.

The rules repeat validators of `orchestrator.spec` in the only language that the API server
evaluates. A property test holds the two to the same verdict. Those marked as Kubernetes' own have
no counterpart there, because a port or a name that is fine on one machine may not be in a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.spec.schema import MOST_KEY_CHARACTERS, OWN_VLLM_FLAGS


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule at a path of the spec; () is the whole resource with its metadata."""

    path: tuple[str, ...]
    rule: str
    message: str
    kubernetes_only: bool = False


_PORT = "0*(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5]?[0-9]{1,4})"

_RANGE = "!has(self.max) || self.min <= self.max"
_RANKS = "self.decode.layout.kvp * self.decode.layout.tpa"
_ONE_OR_ALL = f"self.decode.layout.{{0}} in [1, {_RANKS}]"
_FLAGS = "|".join(flag.replace("-", "[-_]") for flag in sorted(OWN_VLLM_FLAGS))
_OWN_FLAG = f"^({_FLAGS})(=.*)?$"
_TOLERATION = "self.all(t, t.operator == 'Equal' || size(t.value) == 0)"

# A server-side default of `max` would stop `min: 3` alone from meaning three workers.
WITHOUT_DEFAULT = frozenset({("prefill", "workers", "max"), ("decode", "workers", "max")})

# A length lets the server bound what the rules on a text can cost; * are the values of a map.
TEXTS: dict[tuple[str, ...], dict[str, object]] = {
    ("store",): {"pattern": "^(embedded|(redis|rediss|unix)://.*)$"},
    ("router", "grpc"): {"pattern": f"^.+:{_PORT}$", "maxLength": 300},
    ("router", "http"): {"pattern": f"^.+:{_PORT}$", "maxLength": 300},
    ("security", "api_keys", "*"): {"maxLength": MOST_KEY_CHARACTERS},
}

RULES = (
    Rule(
        (),
        "self.metadata.name.matches('^[a-z]([-a-z0-9]{0,34}[a-z0-9])?$')",
        "metadata.name must be at most 36 of a-z, 0-9 and -, and start with a letter: "
        "names of pools and pods are made from it",
        kubernetes_only=True,
    ),
    Rule(
        ("spec",),
        "self.prefill.layout.tp % self.kubernetes.prefill.pods_per_worker == 0",
        "the ranks of prefill.layout must split evenly over kubernetes.prefill.pods_per_worker",
    ),
    Rule(
        ("spec",),
        f"{_RANKS} % self.kubernetes.decode.pods_per_worker == 0",
        "the ranks of decode.layout must split evenly over kubernetes.decode.pods_per_worker",
    ),
    Rule(
        ("spec", "classes"),
        "self.all(name, name.matches('^[a-z][a-z0-9_-]{0,62}$'))",
        "names in classes start with a-z and have at most 63 of a-z, 0-9, _ and -",
    ),
    Rule(
        ("spec",),
        "!has(self.tenants) || self.tenants.all(name, has(self.security) && "
        "has(self.security.api_keys) && name in self.security.api_keys)",
        "tenants need a key in security.api_keys: no request can be told to be theirs without one",
    ),
    Rule(
        ("spec", "tenants"),
        "self.all(name, name.matches('^[a-z][a-z0-9_-]{0,62}$'))",
        "names in tenants start with a-z and have at most 63 of a-z, 0-9, _ and -",
    ),
    Rule(
        ("spec", "security", "api_keys"),
        "self.all(name, name.matches('^[a-z][a-z0-9_-]{0,62}$') && "
        "self[name].matches('^(sha256:[0-9a-fA-F]{64}|[^s].{15,}|s[^h].{14,})$'))",
        "security.api_keys has sha256: and 64 hexadecimal digits, or a key of 16 characters and "
        "more that begins otherwise, under each name of a-z, 0-9, _ and -",
    ),
    Rule(("spec", "prefill", "workers"), _RANGE, "workers.min must not be above workers.max"),
    Rule(("spec", "decode", "workers"), _RANGE, "workers.min must not be above workers.max"),
    Rule(
        ("spec", "decode", "workers"),
        "self.min >= 1",
        "decode.workers.min must be at least 1: nothing can be answered without a decoder",
    ),
    Rule(
        ("spec", "decode", "layout"),
        "self.kvp * self.tpa == self.tpf * self.ep",
        "kvp x tpa must equal tpf x ep: attention and experts use the same ranks",
    ),
    Rule(
        ("spec",),
        "self.prefill.engine == self.decode.engine",
        "prefill.engine and decode.engine must be the same: engines lay state out differently",
    ),
    Rule(
        ("spec",),
        f"self.decode.engine != 'vllm' || "
        f"{_ONE_OR_ALL.format('kvp')} && {_ONE_OR_ALL.format('ep')}",
        "with vLLM decode.layout.kvp and ep are 1 or the number of ranks",
    ),
    Rule(
        ("spec",),
        f"self.decode.engine != 'vllm' || self.prefill.layout.tp % ({_RANKS}) == 0 || "
        f"({_RANKS}) % self.prefill.layout.tp == 0",
        "with vLLM prefill.layout.tp and the ranks of decode.layout are multiples of each other",
    ),
    *(
        Rule(
            ("spec", role, "vllm", "args"),
            f"self.all(argument, !argument.matches('{_OWN_FLAG}'))",
            "vllm.args hold a flag that follows from the rest of the spec",
        )
        for role in ("prefill", "decode")
    ),
    Rule(
        ("spec", "decode", "draft_tokens"),
        "type(self) == int ? self >= 0 && self <= 7 : self == 'auto'",
        "draft_tokens must be auto, or a number from 0 to 7",
    ),
    Rule(
        ("spec", "router"),
        "self.grpc != self.http || self.grpc.endsWith(':0')",
        "router.grpc and router.http cannot both listen on one address",
    ),
    Rule(
        ("spec", "router"),
        "!self.grpc.matches(':0+$') && !self.http.matches(':0+$')",
        "a Service needs ports that are known: set those of router.grpc and router.http above 0",
        kubernetes_only=True,
    ),
    Rule(
        ("spec", "router"),
        "self.grpc.split(':')[self.grpc.split(':').size() - 1] != "
        "self.http.split(':')[self.http.split(':').size() - 1]",
        "router.grpc and router.http need different ports: in a pod both listen on every address",
        kubernetes_only=True,
    ),
    Rule(
        ("spec", "kubernetes", "prefill", "tolerations"),
        _TOLERATION,
        "a toleration with operator Exists takes no value; use Equal",
    ),
    Rule(
        ("spec", "kubernetes", "decode", "tolerations"),
        _TOLERATION,
        "a toleration with operator Exists takes no value; use Equal",
    ),
)
