"""The gate before a server that other machines reach: the nodes' own requests pass, of registered keys, and no others.

Flower's control interface asks nobody who he is, and whoever reaches it can run code on every node and register keys;
it shares a port with the nodes' interface. So SuperLink is on loopback alone, and this is what the network sees. A
request is judged by its path and by the signature in its headers, before its body is read. Run as a module, in a
process of its own; uvicorn and httpx come with Flower.
"""

from __future__ import annotations

import base64
import datetime
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import httpx

PASSES = frozenset(
    f"/v1/fleet/{verb}"
    for verb in (
        "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "get-run",
        "get-fab", "push-object", "pull-object", "confirm-message-received",
    )
)  # fmt: skip
LIMIT = 1 << 28  # bytes of a request
WINDOW = 300.0  # seconds that a signature's time may be off
KEY, TIME, SIGNATURE = b"flwr-public-key", b"flwr-timestamp", b"flwr-signature"
HOP = (b"connection", b"host", b"keep-alive", b"transfer-encoding", b"upgrade")  # headers that are of one connection

Message = MutableMapping[str, Any]  # of ASGI
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Settings(NamedTuple):
    """All that the gate's process is told."""

    host: str  # as parties dial
    port: int
    certificate: str  # files
    secret: str
    keys: str  # folder of the parties' public keys
    behind: str  # address of Flower's server, and the file of the authority that vouches for it
    authority: str


def registered(folder: Path) -> frozenset[bytes]:
    """The parties' public keys of a folder (``NAME.pub``), as nodes send them: PEM."""
    from cryptography.hazmat.primitives import serialization

    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    every = (serialization.load_ssh_public_key(path.read_bytes()) for path in sorted(folder.glob("*.pub")))
    return frozenset(key.public_bytes(*form) for key in every)


def judged(
    method: str, path: str, headers: Mapping[bytes, bytes], known: frozenset[bytes], now: datetime.datetime
) -> int:
    """The status that a request is turned away with; 0: it passes.

    Args:
        method: Of HTTP.
        path: Likewise.
        headers: By their names in small letters.
        known: Public keys.
        now: With its zone.
    """
    if method != "POST" or path not in PASSES:
        return 404
    if not headers.get(b"content-length", b"").isdigit() or b"transfer-encoding" in headers:
        return 411
    if int(headers[b"content-length"]) > LIMIT:
        return 413
    return 0 if _signed(headers, known, now) else 401


def _signed(headers: Mapping[bytes, bytes], known: frozenset[bytes], now: datetime.datetime) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = base64.b64decode(headers[KEY], validate=True)
        signature, time = base64.b64decode(headers[SIGNATURE], validate=True), headers[TIME]
        off = abs((now - datetime.datetime.fromisoformat(time.decode("ascii"))).total_seconds())
        if key not in known or off > WINDOW:
            return False
        loaded = serialization.load_pem_public_key(key)
        assert isinstance(loaded, ec.EllipticCurvePublicKey)
        loaded.verify(signature, time, ec.ECDSA(hashes.SHA256()))
        return True
    except (KeyError, ValueError, TypeError, InvalidSignature):
        return False


class Gate:
    """An ASGI application."""

    def __init__(self, known: frozenset[bytes], behind: httpx.AsyncClient) -> None:
        """Args: `known`, public keys; `behind`, an `httpx.AsyncClient` of the server."""
        self._known, self._behind = known, behind

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Judge a request, and pass it on."""
        if scope["type"] != "http":
            return
        given: Iterable[tuple[bytes, bytes]] = scope["headers"]
        headers = {name.lower(): value for name, value in given}
        now = datetime.datetime.now(datetime.UTC)
        status = judged(scope["method"], scope["path"], headers, self._known, now)
        if status:
            await _answer(send, status, [(b"connection", b"close")], b"")  # its body is not read
            return
        passed = [(name, value) for name, value in headers.items() if name not in HOP]
        try:
            reply = await self._behind.post(scope["path"], headers=passed, content=_body(receive))
        except OSError:
            await _answer(send, 502, [], b"")
            return
        kept = [(name, value) for name, value in reply.headers.raw if name.lower() not in (*HOP, b"content-length")]
        await _answer(send, reply.status_code, kept, reply.content)


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        yield message.get("body", b"")


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


def main(settings: Settings) -> None:
    """Serve until told to end.

    Args:
        settings: What it is told.
    """
    import ssl

    import httpx
    import uvicorn

    trusted = ssl.create_default_context(cafile=settings.authority)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await gate(scope, receive, send)

    client = httpx.AsyncClient(base_url=settings.behind, verify=trusted, trust_env=False, timeout=120.0)
    gate = Gate(registered(Path(settings.keys)), client)
    uvicorn.run(
        app, host=settings.host, port=settings.port, ssl_certfile=settings.certificate,
        ssl_keyfile=settings.secret, lifespan="off", access_log=False, server_header=False, log_level="warning",
    )  # fmt: skip


if __name__ == "__main__":
    main(Settings(**json.loads(sys.argv[1])))
