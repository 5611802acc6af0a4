"""Starts, watches and ends processes: CPU time, peak memory, an orderly end by process id."""

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

PR_SET_PDEATHSIG = 1
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
REPOSITORY = Path(__file__).resolve().parent.parent

_libc = ctypes.CDLL(None, use_errno=True)


def start(
    command: Sequence[str | Path],
    *,
    log: BinaryIO | int,
    environment: Mapping[str, str] | None = None,
    stdout: int | None = None,
) -> subprocess.Popen[str]:
    """Start a process that gets SIGTERM when this one dies, even by SIGKILL.

    It has a session of its own, so that Ctrl-C reaches us alone and we end it in order.
    """
    return subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=log if stdout is None else stdout,
        stderr=log,
        env=environment,
        text=True,
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )


def start_module(
    module: str, arguments: Sequence[str | Path], *, log: BinaryIO | int
) -> subprocess.Popen[str]:
    """Start a module of this repository as a process whose output can be read."""
    search_path = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search_path)}
    command = [sys.executable, "-m", module, *arguments]
    return start(command, log=log, environment=environment, stdout=subprocess.PIPE)


def _end_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end(process: subprocess.Popen[str], patience: float = 10.0) -> None:
    """End a process: ask, wait *patience* seconds, then insist."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            # A process that waits for a mount which does not answer survives even this,
            # until the mount is gone.
            wait_for_exit(process, patience=10.0)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def wait_for_exit(process: subprocess.Popen[str], patience: float) -> bool:
    """Say whether *process* ends by itself within *patience* seconds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    return process.returncode is not None


def first_line(command: Sequence[str | Path]) -> str:
    """The first line that a short command prints, such as its version."""
    answer = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False
    )
    return (answer.stdout or answer.stderr).partition("\n")[0].strip()


def free_port() -> int:
    """A TCP port on loopback that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_until_listening(port: int, process: subprocess.Popen[str], patience: float) -> None:
    """Wait until *process* accepts connections on *port*; raise `TimeoutError` if it does not."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise TimeoutError(f"{process.args[0]} does not listen on port {port}")


def cpu_seconds(pid: int) -> float:
    """CPU time that a process and its descendants have used, in seconds (10 ms steps).

    Children that have ended count as soon as their parent has waited for them.
    """
    return sum(_own_cpu_ticks(each) for each in _family(pid)) / TICKS_PER_SECOND


def peak_memory(pid: int) -> int:
    """Peak resident memory of a process and its living descendants, in bytes."""
    return sum(_own_peak_memory(each) for each in _family(pid))


def available_memory() -> int:
    """What the kernel could hand out without swapping, in bytes."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return int(found[1]) << 10 if found else 0


def _own_cpu_ticks(pid: int) -> int:
    fields = _stat_fields(pid)
    # utime, stime, cutime and cstime: fields 14 to 17, counted from 1, of proc(5).
    return sum(int(field) for field in fields[11:15])


def _own_peak_memory(pid: int) -> int:
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) << 10 if found else 0
    return 0


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold spaces; empty when gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return []


def _family(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat_fields(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    family = [pid]
    for member in family:
        family += children.get(member, [])
    return family
