"""Measures the latency proxy: is the delay right, is the cap right, and does it keep up?"""

import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.proxy_process import ProxyProcess

DELAY_MS = 10.0
RATE = 90e6
CHUNK = 256 << 10
CONNECTIONS = 12
SIZE_EACH = 128 << 20  # bytes through each connection of the many
PING, SEND, RECEIVE = b"ping", b"send", b"recv"


@dataclass(frozen=True, slots=True)
class Finding:
    """One measured figure and the range that it has to lie in."""

    name: str
    value: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Whether the figure is what the proxy promises."""
        return self.low <= self.value <= self.high

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "WRONG"
        return f"{self.name:<58}{self.value:>9.2f}  ({self.low:g} to {self.high:g}) {verdict}"


def check_proxy() -> int:
    """Measure a proxy of our own, print what was found, and return the exit code."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=64) as listener,
        tempfile.TemporaryDirectory() as folder,
    ):
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        port = listener.getsockname()[1]
        proxy = ProxyProcess(port, Path(folder, "traffic"), DELAY_MS, RATE)
        try:
            findings = [*_check_latency(proxy.port), *_check_rates(proxy), *_check_counts(proxy)]
        finally:
            proxy.stop()
    for finding in findings:
        print(finding)
    return 0 if all(finding.passed for finding in findings) else 1


def _check_latency(port: int) -> list[Finding]:
    connected = [_time(lambda: _connect(port).close()) for _ in range(3)]
    with _connect(port) as connection:
        warm = [_time(lambda: _ping(connection)) for _ in range(50)]
    return [
        Finding("round trip of 100 bytes, median, ms", 1e3 * median(warm), 19.5, 21.5),
        Finding("round trip of 100 bytes, longest, ms", 1e3 * max(warm), 19.5, 30.0),
        Finding("connection set-up and a round trip, ms", 1e3 * median(connected), 39.0, 43.0),
    ]


def _check_rates(proxy: ProxyProcess) -> list[Finding]:
    findings = []
    for name, transfer in (("from", _download), ("to", _upload)):
        with _connect(proxy.port) as connection:
            single = SIZE_EACH / _time(lambda c=connection, t=transfer: t(c)) / 1e6
        cpu, begin = proxy.cpu_seconds(), time.perf_counter()
        _in_threads(lambda t=transfer: _transfer_once(proxy.port, t))
        elapsed = time.perf_counter() - begin
        total = CONNECTIONS * SIZE_EACH / elapsed / 1e6
        cores = (proxy.cpu_seconds() - cpu) / elapsed
        findings += [
            Finding(f"1 connection {name} the server, MB/s", single, 80.0, 91.0),
            Finding(f"{CONNECTIONS} connections {name} the server, MB/s", total, 700.0, 1092.0),
            Finding("... cores that the proxy used meanwhile", cores, 0.0, 0.5),
        ]
    return findings


def _check_counts(proxy: ProxyProcess) -> list[Finding]:
    before = proxy.traffic()
    with _connect(proxy.port) as connection:
        for _ in range(9):
            _ping(connection)
    time.sleep(0.1)
    traffic = proxy.traffic() - before
    return [
        Finding("bytes sent in 10 messages of 104", traffic.sent, 1040, 1040),
        Finding("bytes received in 10 messages of 100", traffic.received, 1000, 1000),
        Finding("requests counted in 10 messages", traffic.requests, 10, 10),
    ]


def _time(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def _in_threads(action: Callable[[], object]) -> None:
    threads = [threading.Thread(target=action) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _connect(port: int) -> socket.socket:
    """Connect and exchange one message, because only that shows when a connection is up."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _ping(connection)
    return connection


def _transfer_once(port: int, transfer: Callable[[socket.socket], None]) -> None:
    with _connect(port) as connection:
        transfer(connection)


def _ping(connection: socket.socket) -> None:
    connection.sendall(PING + bytes(100))
    _receive(connection, 100)


def _download(connection: socket.socket) -> None:
    connection.sendall(RECEIVE + bytes(100))
    _receive(connection, SIZE_EACH)


def _upload(connection: socket.socket) -> None:
    connection.sendall(SEND + bytes(100))
    _send(connection, SIZE_EACH)
    _receive(connection, 100)


def _send(connection: socket.socket, size: int) -> None:
    chunk = bytes(CHUNK)
    for _ in range(size // CHUNK):
        connection.sendall(chunk)


def _receive(connection: socket.socket, size: int) -> None:
    buffer = memoryview(bytearray(CHUNK))
    while size:
        count = connection.recv_into(buffer[: min(size, CHUNK)])
        if not count:
            raise EOFError("the connection ended early")
        size -= count


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # the check is over
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        while message := connection.recv(104, socket.MSG_WAITALL):
            if message[:4] == RECEIVE:
                _send(connection, SIZE_EACH)
            else:
                if message[:4] == SEND:
                    _receive(connection, SIZE_EACH)
                connection.sendall(bytes(100))
