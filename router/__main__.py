"""The router process: configuration on stdin, addresses on stdout, log on stderr.

It stops on SIGTERM, on SIGINT and at the end of stdin, so it never outlives whoever started it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

import uvloop

from router.collector import collect_seldom
from router.config import RouterConfig
from router.server import RouterServer
from router.text.text_model import ModelFilesError


async def _serve(config: RouterConfig) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = RouterServer(config)
    waiters: list[asyncio.Future[object]] = []
    try:
        addresses = await server.start()
        collect_seldom()
        print(addresses.to_json(), flush=True)  # noqa: T201 - the parent reads this line
        parent = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(parent), sys.stdin)
        waiters = [asyncio.ensure_future(waiter) for waiter in (stop.wait(), _drained(parent))]
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()
        await server.stop()


async def _drained(stream: asyncio.StreamReader) -> None:
    """Wait for the end of a stream in which nothing is expected."""
    while await stream.read(4096):
        pass


def main() -> None:
    """Run one router until it is told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        config = RouterConfig.from_json(sys.stdin.readline())
        uvloop.run(_serve(config))
    except (OSError, ValueError, ModelFilesError) as error:
        # One line that the parent can show; a person can do nothing with a stack.
        sys.exit(f"the router did not start: {error}")


if __name__ == "__main__":
    main()
