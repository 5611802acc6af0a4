"""Readiness, in the protocol of sd_notify(3): the daemon tells, whoever started it listens.

systemd and ``s3mount`` in the background use the same messages, so a mount becomes ready in one
way only.
"""

import os
import socket
import struct
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_MAX_MESSAGE_SIZE = 4096  # bytes


def send(message: str) -> bool:
    """Tell whoever started this process; False when nobody wants to know.

    A listener that has gone away, or has no room for the message, is no error of the mount's.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        try:
            sender.sendto(message.encode(), address)
        except OSError:
            return False
    return True


def ready(status: str) -> bool:
    """Say that the mount answers; *status* is a line for ``systemctl status``."""
    return send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")


def stopping(status: str) -> bool:
    """Say that the mount is on its way out."""
    return send(f"STOPPING=1\nSTATUS={status}")


def reloading() -> bool:
    """Say that options are being read again; `ready` says when that is done."""
    microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    return send(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")


def extend(seconds: float) -> bool:
    """Ask for *seconds* more, from now on, before a slow start or end counts as failed."""
    return send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")


def alive() -> bool:
    """Feed the watchdog."""
    return send("WATCHDOG=1")


def watchdog_seconds() -> float:
    """Return how often the watchdog wants to be fed at least; 0 when there is none."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdecimal() else 0.0


def is_wanted() -> bool:
    """Say whether somebody listens to more than that the mount is ready."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def dismiss() -> None:
    """Tell nothing more: whoever started this process waits only for it to be ready."""
    os.environ.pop("NOTIFY_SOCKET", None)


class Receiver:
    """Listens for what one child process tells.

    The name of the socket is an abstract one that the kernel chooses, so nothing is left
    behind; that the sender is the child is certified by the kernel.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind("")
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    @property
    def address(self) -> str:
        """What NOTIFY_SOCKET has to say."""
        name: bytes = self._socket.getsockname()
        return "@" + os.fsdecode(name[1:])

    def read(self, pid: int) -> Sequence[str]:
        """Return the lines that process *pid* has sent since the last call."""
        lines: list[str] = []
        while True:
            try:
                message, ancillary, _, _ = self._socket.recvmsg(
                    _MAX_MESSAGE_SIZE, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except BlockingIOError:
                return lines
            if _sender(ancillary) == pid:
                lines += message.decode(errors="replace").splitlines()


def _sender(ancillary: Sequence[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid: int = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0]
            return pid
    return None
