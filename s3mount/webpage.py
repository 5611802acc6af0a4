"""A mount over HTTP: a page for people, /status.json, /metrics and /healthz, read-only.

There is no login: the address is this machine's own unless somebody chooses another one.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import trio

from s3mount.errors import MountError
from s3mount.page import PAGE

log = logging.getLogger(__name__)

REQUEST_TIMEOUT = 5.0  # seconds for a client to ask, and to take the answer
MAX_REQUEST_SIZE = 8 << 10
MAX_CLIENTS = 16
_HEADERS = (
    "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n"
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'\r\n"
)
_REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found"}
_REASONS |= {405: "Method Not Allowed", 501: "Not Implemented", 503: "Service Unavailable"}


class Page(NamedTuple):
    """An answer."""

    status: int
    kind: str
    body: bytes


class Pages:
    """What there is to see; *metrics* makes the text for Prometheus of a status."""

    def __init__(
        self,
        status: Callable[[], Mapping[str, object]],
        metrics: Callable[[Mapping[str, object]], bytes],
    ) -> None:
        self._status = status
        self._metrics = metrics

    def answer(self, path: str) -> Page:
        """The page at *path*."""
        if path == "/":
            return Page(200, "text/html; charset=utf-8", PAGE.encode())
        if path == "/status.json":
            return Page(200, "application/json", json.dumps(self._status()).encode())
        if path == "/healthz":
            state = str(self._status()["state"])
            return _text(200 if state == "serving" else 503, state)
        if path == "/metrics":
            try:
                body = self._metrics(self._status())
            except ImportError:
                return _text(501, "/metrics needs prometheus-client (pip install s3mount[status])")
            return Page(200, "text/plain; version=0.0.4; charset=utf-8", body)
        return _text(404, "there are /, /status.json, /metrics and /healthz")


def listen(host: str, port: int) -> trio.SocketListener:
    """Listen there; raises `MountError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(MAX_CLIENTS)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        reason = error.strerror or str(error)
        raise MountError(f"option status-listen: {host}:{port}: {reason}", 1) from error
    return trio.SocketListener(trio.socket.from_stdlib_socket(listening))


async def serve(listener: trio.SocketListener, pages: Pages) -> None:
    """Answer requests until cancelled."""
    slots = trio.CapacityLimiter(MAX_CLIENTS)

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            if not slots.available_tokens:
                return  # Who waited for a turn would hold a descriptor of the mount meanwhile.
            async with slots:
                await _attend(stream, pages)

    async with listener:
        await trio.serve_listeners(_guarded(handle), [listener])


async def _attend(stream: trio.SocketStream, pages: Pages) -> None:
    """Answer a client within the time that it has."""
    with trio.move_on_after(REQUEST_TIMEOUT):
        try:
            await _converse(stream, pages)
        except trio.BrokenResourceError:
            pass  # Nobody is left to be told.
        except Exception:
            # Whoever asks for a page may fail, the mount may not.
            log.exception("bug in the status page")


def _guarded(
    handle: Callable[[trio.SocketStream], Awaitable[None]],
) -> Callable[[trio.SocketStream], Awaitable[None]]:
    async def guarded(stream: trio.SocketStream) -> None:
        try:
            await handle(stream)
        except* trio.BrokenResourceError:
            pass

    return guarded


async def _converse(stream: trio.SocketStream, pages: Pages) -> None:
    """Answer one request, and hang up."""
    data = bytearray()
    while b"\r\n\r\n" not in data:
        if len(data) > MAX_REQUEST_SIZE:
            break
        part = await stream.receive_some(MAX_REQUEST_SIZE)
        if not part:
            return
        data += part
    method, page = _page(bytes(data), pages)
    head = (
        f"HTTP/1.1 {page.status} {_REASONS[page.status]}\r\nContent-Type: {page.kind}\r\n"
        f"Content-Length: {len(page.body)}\r\n{_HEADERS}\r\n"
    )
    await stream.send_all(head.encode() + (b"" if method == "HEAD" else page.body))
    await stream.send_eof()
    # Hanging up on what was sent and not read would be a reset, by which the answer may be lost.
    while await stream.receive_some(MAX_REQUEST_SIZE):
        pass


def _page(data: bytes, pages: Pages) -> tuple[str, Page]:
    lines = data.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1.") or b"\r\n\r\n" not in data:
        return "", _text(400, "this is not HTTP")
    method, target, _ = words
    if method not in ("GET", "HEAD"):
        return method, _text(405, "there is nothing to change here")
    fields = (line.partition(":") for line in lines[1:])
    host = next((value.strip() for name, _, value in fields if name.lower() == "host"), "")
    if not _is_address(host):
        # A web page elsewhere could else have a browser read this one under its own name.
        return method, _text(403, "use the address, not a name that somebody else may have chosen")
    return method, pages.answer(target.partition("?")[0])


def _is_address(host: str) -> bool:
    """Whether a Host header names this machine in a way that no name server has a say in."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name.strip("[]") == "localhost":
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _text(status: int, text: str) -> Page:
    return Page(status, "text/plain; charset=utf-8", f"{text}\n".encode())
