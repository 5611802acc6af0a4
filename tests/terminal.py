"""A terminal for tests: what a command shows to a person who watches it."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence

from tests.mounts import COMMAND

LINES, COLUMNS = 50, 120


def watched(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    until: str | None = None,
    timeout: float = 60.0,
) -> tuple[int, str]:
    """Run ``s3mount ARGUMENTS`` on a terminal; return its exit code, and all that it has shown.

    When it has shown what matches *until*, Ctrl-C is pressed.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    command = [*COMMAND, *arguments]
    environment = {**environment, "TERM": "xterm-256color"}
    # A terminal of its own, so that Ctrl-C is a signal for it and not for the tests.
    process = subprocess.Popen(
        command, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    shown, deadline = "", time.monotonic() + timeout
    try:
        while part := _read(master, deadline):
            shown += part
            if until is not None and re.search(until, shown):
                process.send_signal(signal.SIGINT)
                until = None
        return process.wait(timeout), shown
    finally:
        process.kill()
        process.wait()
        os.close(master)


def _read(master: int, deadline: float) -> str:
    """What is shown next; nothing at the end."""
    ready, _, _ = select.select([master], [], [], max(0.0, deadline - time.monotonic()))
    if not ready:
        raise TimeoutError("the command does not end")
    try:
        return os.read(master, 1 << 16).decode(errors="replace")
    except OSError:  # That is how the end of a terminal's session shows.
        return ""
