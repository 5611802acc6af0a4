"""Asking a running mount: where its control socket is, and the blocking side of the talk.

Both sides speak lines of JSON.  The client sends one request, ``{"command": NAME, ...}``; the
daemon answers any number of ``{"progress": {...}}`` and then ``{"result": ...}`` or
``{"error": TEXT}``.  Commands start fast because no event loop is imported here.
"""

import hashlib
import json
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

MAX_REQUEST_SIZE = 64 << 10  # bytes of one line
_MAX_ANSWER_SIZE = 64 << 20
_MAX_SOCKET_PATH = 107  # bytes, of sun_path
_PEER = struct.Struct("3i")  # pid, uid, gid

Progress = Callable[[Mapping[str, Any]], None]


class ControlError(Exception):
    """The daemon refused a request, or did not finish it; the text says why."""


class NoDaemon(ControlError):
    """Nobody listens: there is no such mount, or its daemon has died."""


class Silent(ControlError):
    """The daemon did not answer in time."""


def socket_path(mountpoint: Path) -> Path:
    """Return where the daemon of *mountpoint* (a real path) listens; makes the directory.

    Raises `PermissionError` when the directory is there and is not safely ours.
    """
    folder = _folders(os.geteuid())[0]
    _make_private(folder)
    return folder / _socket_name(mountpoint)


def find_socket(mountpoint: Path, owner: int) -> Path | None:
    """Return the socket of the mount that user *owner* has at *mountpoint*, if there is one.

    Raises `PermissionError` when it is another user's, and not for us to find.
    """
    for folder in _folders(owner):
        path = folder / _socket_name(mountpoint)
        try:
            if path.is_socket() and _is_private(folder, owner):
                return path
        except PermissionError:
            if owner != os.geteuid():
                raise
    return None


def all_sockets(mountpoints: Collection[Path] = ()) -> list[Path]:
    """Return the sockets of all daemons that we may ask: root's and everybody's, or our own.

    With *mountpoints* only of those there.
    """
    if os.geteuid() == 0:
        folders = _folders(0)
        # Only those of users: a server of the demo has its sockets in /tmp/s3mount-weed-*, too.
        places = Path("/tmp").glob("s3mount-*")
        folders += [path for path in places if path.name.removeprefix("s3mount-").isdecimal()]
        folders += Path("/run/user").glob("*/s3mount")
    else:
        folders = _folders(os.geteuid())
    found: dict[Path, None] = {}
    for folder in folders:
        try:
            owner = folder.lstat().st_uid
            if _is_private(folder, owner):
                found.update(dict.fromkeys(sorted(folder.glob("*.sock"))))
        except OSError:
            continue  # There is none, or it is not ours to look into.
    names = {_socket_name(path) for path in mountpoints}
    return [path for path in found if not names or path.name in names]


def _socket_name(mountpoint: Path) -> str:
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:24] + ".sock"


def _folders(owner: int) -> list[Path]:
    """Return where sockets of *owner* may be, the place for new ones first.

    A user's environment differs between a terminal, cron and sudo, so all of them are looked at.
    """
    if owner == 0:
        return [Path("/run/s3mount")]
    folders = [Path(f"/tmp/s3mount-{owner}")]
    if (runtime := Path(f"/run/user/{owner}")).is_dir():
        folders.insert(0, runtime / "s3mount")
    chosen = os.environ.get("XDG_RUNTIME_DIR", "")
    longest = len(os.fsencode(chosen)) + len("/s3mount/") + len(_socket_name(Path()))
    fits = chosen.startswith("/") and longest <= _MAX_SOCKET_PATH
    if fits and owner == os.geteuid() and _is_of(owner, chosen):
        folders.insert(0, Path(chosen, "s3mount"))
    return folders


def _is_of(owner: int, folder: str) -> bool:
    """Whether a directory is there and belongs to *owner*: su(1) hands on those of others."""
    try:
        status = Path(folder).stat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == owner


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    if not _is_private(folder, os.geteuid()):
        raise PermissionError(f"{folder} must be a directory of yours with mode 0700")


def _is_private(folder: Path, owner: int) -> bool:
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == owner and not status.st_mode & 0o077


class Connection:
    """A connection to the daemon of one mount; `pid` is certified by the kernel.

    Each request needs a connection of its own.
    """

    def __init__(self, path: Path, *, timeout: float = 5.0) -> None:
        """Connect within *timeout* seconds; raises `NoDaemon` or `Silent`."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(os.fspath(path))
        except TimeoutError as error:
            self._socket.close()
            raise Silent("the daemon does not answer") from error
        except OSError as error:
            self._socket.close()
            raise NoDaemon(f"no daemon listens at {path}: {error.strerror}") from error
        self.pid: int = _PEER.unpack(
            self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        )[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def ask(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        progress: Progress = lambda _: None,
        timeout: float | None = None,
    ) -> object:
        """Send one request and return its result; *progress* hears what is told on the way.

        Raises `ControlError` with the daemon's own words when it refuses, and `Silent` when
        the result is not there after *timeout* seconds (None: wait for ever).
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        request = json.dumps({**(arguments or {}), "command": command}) + "\n"
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(request.encode())
            for line in self._lines(deadline):
                answer = _parsed(line)
                if "progress" not in answer:
                    return _result(answer)
                progress(answer["progress"])
        except TimeoutError as error:
            raise Silent("the daemon did not finish in time") from error
        except OSError as error:
            raise ControlError(f"the connection to the daemon broke: {error}") from error
        raise ControlError("the daemon ended without an answer")

    def _lines(self, deadline: float | None) -> Iterator[bytes]:
        buffer = bytearray()
        while True:
            while (end := buffer.find(b"\n")) < 0:
                if len(buffer) > _MAX_ANSWER_SIZE:
                    raise ControlError("the answer of the daemon is too long")
                if not (data := self._receive(deadline)):
                    return
                buffer += data
            yield bytes(buffer[:end])
            del buffer[: end + 1]

    def _receive(self, deadline: float | None) -> bytes:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
        return self._socket.recv(1 << 16)


def _parsed(line: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ControlError("the answer of the daemon is not JSON") from error
    if not isinstance(answer, dict):
        raise ControlError("the answer of the daemon is not a JSON object")
    return answer


def _result(answer: Mapping[str, object]) -> object:
    if "error" in answer:
        raise ControlError(str(answer["error"]))
    return answer.get("result")
