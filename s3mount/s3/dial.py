"""Opening connections: names to addresses, addresses to sockets, sockets to TLS."""

import os
import random
import socket
import ssl
from typing import Any

import trio

from s3mount.errors import MountError
from s3mount.s3.connection import (
    STALL_SECONDS,
    Broken,
    Connection,
    Pulse,
    Untrusted,
    Watch,
)
from s3mount.s3.endpoint import EndpointSettings

CONNECT_SECONDS = 10.0
_NAMES_SECONDS = 30.0
_FAILED_SECONDS = 60.0

_Address = tuple[socket.AddressFamily, Any]


def tls_context(settings: EndpointSettings) -> ssl.SSLContext:
    """Make the context of all TLS connections; raises `MountError` for an unusable CA bundle."""
    bundle = settings.ca_bundle
    directory = bundle if bundle and os.path.isdir(bundle) else None  # noqa: PTH112
    try:
        context = ssl.create_default_context(cafile=None if directory else bundle, capath=directory)
    except (OSError, ssl.SSLError) as error:
        raise MountError(f"CA bundle {bundle}: {error}") from error
    if not settings.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Dialer:
    """Opens connections to one host.

    Answers of the name service are reused briefly, connections are spread over all
    addresses, and an address that failed lately is tried last.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        self._context = tls_context(settings) if settings.secure else None
        self._addresses: list[_Address] = []
        self._resolved = float("-inf")
        self._failed: dict[_Address, float] = {}

    async def open(self) -> Connection:
        """Connect, within `CONNECT_SECONDS`; raises `Broken`."""
        try:
            with trio.fail_after(CONNECT_SECONDS):
                addresses = await self._candidates()
                return await self._open_any(addresses)
        except trio.TooSlowError:
            raise Broken(f"connecting to {self._settings.authority} takes too long") from None

    async def _candidates(self) -> list[_Address]:
        now = trio.current_time()
        if now - self._resolved > _NAMES_SECONDS:
            self._addresses = await self._resolve()
            self._resolved = now
            self._failed = {
                address: at for address, at in self._failed.items() if now - at < _FAILED_SECONDS
            }
        shuffled = random.sample(self._addresses, len(self._addresses))
        return sorted(shuffled, key=lambda address: address in self._failed)

    async def _resolve(self) -> list[_Address]:
        host, port = self._settings.host, self._settings.port
        try:
            answers = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            if self._addresses:
                return self._addresses  # A name service that fails forgets nothing.
            raise Broken(f"{host}: {error}") from error
        return [(family, address) for family, _, _, _, address in answers]

    async def _open_any(self, addresses: list[_Address]) -> Connection:
        reason = "it has no address"
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                with trio.fail_after(CONNECT_SECONDS / (left + 1) if left > 1 else CONNECT_SECONDS):
                    connection = await self._open_one(address)
            except ssl.SSLCertVerificationError as error:
                raise Untrusted(
                    f"the certificate of {self._settings.authority} is not trusted: "
                    f"{error.verify_message}"
                ) from error
            except ssl.SSLError as error:
                reason = f"TLS fails: {error.reason or error}"
            except trio.TooSlowError:
                reason = "no answer to a connection request"
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
            else:
                self._failed.pop(address, None)
                return connection
            self._failed[address] = trio.current_time()
        self._resolved = float("-inf")
        raise Broken(f"cannot connect to {self._settings.authority}: {reason}")

    async def _open_one(self, address: _Address) -> Connection:
        family, where = address
        plain = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            plain.setblocking(False)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            await _connect(plain, where)
            if self._context is not None:
                plain = await self._handshake(plain)
        except BaseException:
            plain.close()
            raise
        return Connection(plain, Watch(trio.CancelScope(), Pulse(), STALL_SECONDS))

    async def _handshake(self, plain: socket.socket) -> ssl.SSLSocket:
        assert self._context is not None
        secure = self._context.wrap_socket(
            plain, server_hostname=self._settings.host, do_handshake_on_connect=False
        )
        try:
            while True:
                try:
                    secure.do_handshake()
                except ssl.SSLWantReadError:
                    await trio.lowlevel.wait_readable(secure)
                except ssl.SSLWantWriteError:
                    await trio.lowlevel.wait_writable(secure)
                else:
                    return secure
        except BaseException:
            secure.close()
            raise


async def _connect(plain: socket.socket, where: Any) -> None:  # noqa: ANN401
    try:
        plain.connect(where)
    except BlockingIOError:
        await trio.lowlevel.wait_writable(plain)
        error = plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error)) from None
