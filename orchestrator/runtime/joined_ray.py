"""A Ray that runs already, on this and other machines, for a cluster that one machine cannot hold.

Whoever runs it decides on its nodes, its ports and its token. We only connect, and leave it as it
was: our workers end with `tandem up`, Ray stays.
"""

from __future__ import annotations

import logging
import os
import signal

from orchestrator.errors import UserError
from orchestrator.runtime.child import Interrupted
from orchestrator.spec.schema import RaySpec

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers run in the environment that their node was started in, also below `uv run`.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


def join_ray(spec: RaySpec) -> None:
    """Connect to the Ray at `spec.address`; this machine must be one of its nodes.

    Raises UserError when that fails, or when no node has what workers are to be placed on.
    """
    os.environ.update(_ENVIRONMENT)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    # Ray takes SIGTERM for itself; whoever started us decides what a stop means.
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=spec.address,
            log_to_driver=False,
            configure_logging=False,
            namespace="tandem",
        )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        last_words = str(error).strip().rsplit("\n", 1)[-1]
        raise UserError(
            f"the Ray at {spec.address} cannot be joined: {last_words}",
            "start one here with `ray start --head`, give this process its token, and correct "
            "ray.address",
        ) from error
    except SystemExit as error:
        # Ray's answer to a SIGTERM that came in between.
        raise Interrupted from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for field, resource in (("prefill_on", spec.prefill_on), ("decode_on", spec.decode_on)):
        if resource is not None and found.get(resource, 0.0) < 1.0:
            raise UserError(
                f"ray.{field}: no node of the Ray at {spec.address} has the resource {resource}",
                f"start those nodes with `ray start --resources='{{\"{resource}\": N}}'`, N being "
                "how many workers each may run",
            )
