"""Who may connect to whom: clients to routers, the service's own pods to each other, no one else.

Only what comes in is restricted. What goes out (names, checkpoints, spans) differs from site to
site and is theirs to restrict.
"""

from __future__ import annotations

from k8s.operator.render.parts import Part, metadata, selector
from k8s.operator.service import LABEL_COMPONENT, LABEL_SERVICE, Service

_KUBERAY: Part = {
    "namespaceSelector": {},
    "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
}


def network_policies(service: Service) -> list[Part]:
    """One for the routers, one for everything behind them."""
    if not service.spec.kubernetes.network_policy:
        return []
    own: Part = {"podSelector": {"matchLabels": {LABEL_SERVICE: service.name}}}
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata(service, f"{service.name}-routers", "router"),
            "spec": {
                "podSelector": {"matchLabels": selector(service, "router")},
                "policyTypes": ["Ingress"],
                "ingress": [
                    {
                        "ports": [
                            {"port": "http", "protocol": "TCP"},
                            {"port": "grpc", "protocol": "TCP"},
                        ]
                    }
                ],
            },
        },
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata(service, f"{service.name}-internal", "internal"),
            "spec": {
                "podSelector": {
                    "matchLabels": {LABEL_SERVICE: service.name},
                    "matchExpressions": [
                        {"key": LABEL_COMPONENT, "operator": "NotIn", "values": ["router"]}
                    ],
                },
                "policyTypes": ["Ingress"],
                "ingress": [{"from": [own, _KUBERAY]}],
            },
        },
    ]
