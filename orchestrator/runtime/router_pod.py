"""A router on its own: `python -m orchestrator.runtime.router_pod`, what a router's pod runs.

`python -m router` takes its settings on standard input and ends with whoever started it; a pod has
neither. Here they come from a spec file, and only a signal ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

import uvloop

from orchestrator.errors import UserError
from orchestrator.runtime.router_process import router_config
from orchestrator.spec import load_spec
from router.config import RouterConfig
from router.server import RouterServer
from router.text.text_model import ModelFilesError

_LOG = logging.getLogger(__name__)


async def serve(config: RouterConfig) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError when an address cannot be bound."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = RouterServer(config)
    try:
        addresses = await server.start()
        _LOG.info("cluster %s: gRPC %s, HTTP %s", config.cluster, addresses.grpc, addresses.http)
        await stop.wait()
    finally:
        await server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="the spec of the cluster, in YAML")
    parser.add_argument("--store", required=True, help="URL of the worker directory")
    parser.add_argument("--cluster", required=True, help="name of the worker directory")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        config = router_config(load_spec(args.spec), args.store, args.cluster)
        uvloop.run(serve(config))
    except UserError as error:
        sys.exit(f"the router did not start: {error.message}")
    except (OSError, ValueError, ModelFilesError) as error:
        # One line that a person can use; a stack says nothing more.
        sys.exit(f"the router did not start: {error}")


if __name__ == "__main__":
    main()
