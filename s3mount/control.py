"""The control socket of a mount: answers commands of the mount's owner, and of root.

The words are those of `s3mount.controlclient`.  Nothing that a client does, or fails to do, can
harm the mount: lines are bounded, silent clients are dropped, failures become answers.
"""

import json
import logging
import math
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import trio

from s3mount import __version__
from s3mount.controlclient import MAX_REQUEST_SIZE
from s3mount.controlclient import socket_path as socket_path  # where `serve` is told to listen
from s3mount.errors import MountError, PosixError, StoreError

log = logging.getLogger(__name__)

REQUEST_TIMEOUT = 10.0  # seconds for a client to say what it wants
SEND_TIMEOUT = 10.0  # seconds for a client to take what it asked for
# What a client may take as slowly as it likes: a pager may stand still before it.
ENDLESS = frozenset({"trace"})
MAX_CLIENTS = 32
_PEER = struct.Struct("3i")  # pid, uid, gid

Progress = Callable[[Mapping[str, object]], Awaitable[None]]
Handler = Callable[[Mapping[str, object], Progress], Awaitable[object]]


class _BadRequestError(Exception):
    """What a client sent is not a request."""


def hello(mountpoint: Path, source: str, *, read_only: bool) -> Handler:
    """Return the handler by which a client finds out whose daemon this is."""

    async def handler(request: Mapping[str, object], progress: Progress) -> object:
        return {
            "mountpoint": os.fspath(mountpoint),
            "source": source,
            "read_only": read_only,
            "pid": os.getpid(),
            "version": __version__,
        }

    return handler


async def serve(
    path: Path,
    handlers: Mapping[str, Handler],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests at the socket *path* until cancelled.

    A handler gets the request and a function to report progress with; what it returns is the
    answer, as JSON.  It is cancelled when its client hangs up.
    """
    listener, identity = _listen(path)
    server = _Server(handlers)
    try:
        async with listener:
            task_status.started()
            await trio.serve_listeners(server.serve_client, [listener])
    finally:
        _remove(path, identity)


def _listen(path: Path) -> tuple[trio.SocketListener, int]:
    """Return a socket that only the owner of the mount can connect to, and its inode number.

    A name that was left behind by a dead daemon is taken over; whoever mounts has made sure
    that no other daemon serves the mount point.
    """
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listening.setblocking(False)
    try:
        listening.bind(os.fspath(path))
        path.chmod(0o600)  # in time: nobody can connect before listen()
        listening.listen(MAX_CLIENTS)
    except BaseException:
        listening.close()
        raise
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    return listener, path.lstat().st_ino


def _remove(path: Path, identity: int) -> None:
    """Remove our socket, but not the one of a daemon that has come after us."""
    try:
        status = path.lstat()
        if stat.S_ISSOCK(status.st_mode) and status.st_ino == identity:
            path.unlink()
    except FileNotFoundError:
        pass


class _Server:
    """Serves the clients of one socket."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._clients = 0

    async def serve_client(self, stream: trio.SocketStream) -> None:
        """Answer the one request of a client."""
        async with stream:
            if not _may_ask(stream) or self._clients >= MAX_CLIENTS:
                return
            self._clients += 1
            try:
                await self._answer(_Client(stream))
            except* trio.BrokenResourceError:
                pass  # The client has gone, and nobody is left to be told.
            except* Exception:
                log.exception("bug in the control socket")
            finally:
                self._clients -= 1

    async def _answer(self, client: "_Client") -> None:
        try:
            request = await client.read_request()
            handler = self._handlers.get(str(request.get("command")))
            if handler is None:
                raise _BadRequestError(f"there is no command {request.get('command')!r}")
        except _BadRequestError as error:
            await client.send({"error": str(error)})
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.cancel_when_gone, nursery.cancel_scope)
            answer = await _run(handler, request, client)
            # The answer to "unmount" must not be lost because the mount has ended.
            with trio.CancelScope(shield=True):
                await client.send(answer)
            nursery.cancel_scope.cancel()


async def _run(
    handler: Handler, request: Mapping[str, object], client: "_Client"
) -> Mapping[str, object]:
    patience = math.inf if request.get("command") in ENDLESS else SEND_TIMEOUT

    async def progress(news: Mapping[str, object]) -> None:
        await client.send({"progress": news}, patience)

    try:
        result = await handler(request, progress)
        json.dumps(result)
    except trio.BrokenResourceError:
        raise
    except (MountError, PosixError, StoreError) as error:
        return {"error": str(error)}
    except Exception as error:
        # A client's request may fail, the mount may not.
        log.exception("bug in the command %s", request.get("command"))
        return {"error": f"bug: {type(error).__name__}: {error}"}
    return {"result": result}


class _Client:
    """One client: a bounded reader, and a writer that one task uses at a time."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._sending = trio.Lock()

    async def read_request(self) -> Mapping[str, object]:
        """Return the request; raises `_BadRequestError` when there is none in what came."""
        line = bytearray()
        with trio.move_on_after(REQUEST_TIMEOUT):
            while b"\n" not in line:
                if len(line) > MAX_REQUEST_SIZE:
                    raise _BadRequestError("the request is too long")
                data = await self._stream.receive_some(MAX_REQUEST_SIZE)
                if not data:
                    break
                line += data
        try:
            request = json.loads(line.partition(b"\n")[0])
        except (ValueError, RecursionError) as error:
            raise _BadRequestError("the request is not a line of JSON") from error
        if not isinstance(request, dict):
            raise _BadRequestError("the request is not a JSON object")
        return request

    async def send(self, answer: Mapping[str, object], patience: float = SEND_TIMEOUT) -> None:
        """Send one line; raises `trio.BrokenResourceError` when the client does not take it.

        *patience* is in seconds.
        """
        line = json.dumps(answer).encode() + b"\n"
        with trio.move_on_after(patience) as scope:
            async with self._sending:
                await self._stream.send_all(line)
        if scope.cancelled_caught:
            raise trio.BrokenResourceError("the client does not read")

    async def cancel_when_gone(self, scope: trio.CancelScope) -> None:
        """Cancel *scope* when the client hangs up."""
        try:
            while await self._stream.receive_some(MAX_REQUEST_SIZE):
                pass  # Whatever else it says is no part of its one request.
        except trio.BrokenResourceError:
            pass
        scope.cancel()


def _may_ask(stream: trio.SocketStream) -> bool:
    """Say whether the client is the owner of the mount, or root."""
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _, uid, _ = _PEER.unpack(credentials)
    return uid in (0, os.geteuid())
