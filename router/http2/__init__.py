"""gRPC over HTTP/2 on the router's own event loop.

grpc.aio hands every message from its poller thread to the loop and back: measured here, about 40
to 130 microseconds of processor time for each, most of what a router does. This does the same on
the loop itself: several messages of several streams leave in one write.
"""

from workers.compiled import prefer_compiled

prefer_compiled(__name__, __path__)
