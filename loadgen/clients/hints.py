"""What to change when an endpoint does not answer, the same over gRPC and HTTP."""

from __future__ import annotations

NOBODY = "start a cluster with `tandem up`, or name another --target"
NO_KEY = "name a key that it knows with --api-key-file"
UNTRUSTED = "name the certificate to trust with --ca"
OTHER_PORT = "gRPC and HTTP have a port each; with TLS it is https:// or grpcs://"
