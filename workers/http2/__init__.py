"""gRPC over HTTP/2 on the event loop of a router or a worker.

grpc.aio hands every message from its poller thread to the loop and back: measured here, about 40
to 130 microseconds of processor time for each, most of what a router does with it. This does the
same on the loop itself: several messages of several streams leave in one write.
"""

from workers.compiled import prefer_compiled

prefer_compiled(__name__, __path__)
