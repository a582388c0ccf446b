"""Who may call: API keys, and the certificates of TLS. One place for both front ends.

Keys are compared by digest and never kept, logged or told to workers; a tenant is the name that a
key has in the configuration.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
from collections.abc import Sequence
from pathlib import Path

from protos.tandem.v1 import common_pb2
from router.config import ApiKey, TlsFiles
from router.errors import RequestError

_SCHEME = "bearer "


_LOCAL_PEER = "unix:"  # of the router's own socket; nothing else of it listens on one


class Access:
    """Tells tenants by their keys."""

    def __init__(self, keys: Sequence[ApiKey] | None) -> None:
        """None lets everybody in, as the tenant without a name."""
        self._tenants = None if keys is None else [(key.sha256, key.tenant) for key in keys]

    def tenant(self, authorization: str | None, peer: str = "") -> str:
        """The tenant of an `Authorization: Bearer KEY`; raises RequestError without a known key.

        `peer`, as gRPC names it, may be the local socket, which needs none.
        """
        if self._tenants is None or peer.startswith(_LOCAL_PEER):
            return ""
        if not authorization or not authorization.lower().startswith(_SCHEME):
            raise RequestError(
                common_pb2.REASON_UNAUTHENTICATED,
                "authorization: an API key is needed; send `Authorization: Bearer KEY`",
            )
        digest = hashlib.sha256(authorization[len(_SCHEME) :].strip().encode()).hexdigest()
        # All of them, whichever fits: how long this takes says nothing of the keys.
        found = [tenant for known, tenant in self._tenants if hmac.compare_digest(known, digest)]
        if not found:
            raise RequestError(
                common_pb2.REASON_UNAUTHENTICATED, "authorization: this API key is not known here"
            )
        return found[0]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise OSError(f"security.tls: cannot read {path}: {error.strerror}") from error


def ssl_context(tls: TlsFiles) -> ssl.SSLContext:
    """TLS for a server. Raises OSError for files that cannot be read or used."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in (tls.cert, tls.key):
        _read(path)
    context.load_cert_chain(tls.cert, tls.key)
    if tls.client_ca is not None:
        _read(tls.client_ca)
        context.load_verify_locations(tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
