"""What goes wrong over HTTP, in a person's words: with one request, and with a whole endpoint."""

from __future__ import annotations

import json

import aiohttp

from loadgen.clients import hints
from loadgen.errors import LoadError

Fault = aiohttp.ClientError | TimeoutError

_SHOWN_CHARACTERS = 200


def of_request(error: Fault, timeout_s: float) -> tuple[str, str]:
    """Reason and detail of a request that did not come through."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return "timeout", str(error)
        case TimeoutError():
            return "timeout", f"no whole answer within {timeout_s:g} s"
        case aiohttp.ClientPayloadError():
            return "broken stream", "the connection was closed in the middle of an answer"
        case aiohttp.ClientConnectorError():
            return "no connection", _of_connector(error)
        case aiohttp.ClientConnectionError():
            return "connection lost", str(error)
        case _:
            return type(error).__name__, str(error)


def of_endpoint(address: str, error: Fault, timeout_s: float) -> LoadError:
    """An endpoint that cannot be reached at all."""
    match error:
        case aiohttp.InvalidURL():
            told, hint = "is no address", "such as http://127.0.0.1:8000"
        case TimeoutError():
            told, hint = f"no answer within {timeout_s:g} s", "is it still starting, or another's?"
        case aiohttp.ClientConnectorCertificateError():
            told = f"its certificate is not trusted: {error.certificate_error}"
            hint = hints.UNTRUSTED
        case aiohttp.ClientConnectorSSLError():
            told, hint = "it does not speak TLS there", "try http://"
        case aiohttp.ClientConnectorError():
            told, hint = f"cannot connect: {_of_connector(error)}", hints.NOBODY
        case _:
            told, hint = str(error) or type(error).__name__, hints.OTHER_PORT
    return LoadError(f"--target {address}: {told}", hint)


def of_first_request(url: str, status: int, text: str) -> LoadError:
    """An endpoint that has a model and refuses a request of one token."""
    is_chat = url.endswith("/chat/completions")
    if status in (401, 403):
        hint = hints.NO_KEY
    elif status == 429:
        hint = "it takes no more at the moment: wait, or send with another --api-key-file"
    elif status >= 500:
        hint = "its own log says why"
    else:
        hint = "" if is_chat else "try --api chat if it takes no tokens as prompts"
    return LoadError(f"--target {url}: a request of one token gives {status}: {shown(text)}", hint)


def shown(text: str) -> str:
    """The message of OpenAI's error object, or the beginning of whatever came."""
    try:
        message = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = text
    short = " ".join(str(message).split())
    return short if len(short) <= _SHOWN_CHARACTERS else short[:_SHOWN_CHARACTERS] + "..."


def _of_connector(error: aiohttp.ClientConnectorError) -> str:
    return str(error.os_error.strerror or error.os_error)
