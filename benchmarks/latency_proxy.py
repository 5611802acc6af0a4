"""A TCP relay that makes a near server look far: it adds delay and caps each connection.

One process, one epoll loop.  Bytes go from socket to pipe to socket by splice(2) and are never
copied here; the pipe is the delay queue, `DelayLine` says when its bytes may leave.  Setting up
a connection costs one round trip, as it does on a real path.

    python -m benchmarks.latency_proxy --target 127.0.0.1:9000 --delay-ms 10 --rate 90e6
    python -m benchmarks.latency_proxy --self-check
"""

import argparse
import contextlib
import fcntl
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.delay_line import DelayLine

PIPE_SIZE = 1 << 20  # the most that an unprivileged process may ask for; 256 slots
TICK = 0.0005  # seconds: while much flows the loop runs at most this often, to save CPU
MUCH = 32 << 10  # bytes moved in one turn of the loop; small messages never wait for a tick
SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
SOCKET_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
COUNTERS = struct.Struct("=QQQQ")


@dataclass(frozen=True, slots=True)
class Traffic:
    """What has gone through a proxy: bytes by direction, requests (roughly), connections.

    A request is counted when a client speaks first on a connection or after an answer, which
    is exact for HTTP without pipelining and without ``100-continue``.
    """

    sent: int
    received: int
    requests: int
    connections: int

    def __sub__(self, earlier: "Traffic") -> "Traffic":
        return Traffic(
            self.sent - earlier.sent,
            self.received - earlier.received,
            self.requests - earlier.requests,
            self.connections - earlier.connections,
        )


def read_traffic(path: Path) -> Traffic:
    """Read the counters that a running proxy keeps in its statistics file."""
    return Traffic(*COUNTERS.unpack(path.read_bytes()[: COUNTERS.size]))


class Counters:
    """Counters in memory that other processes see as a file."""

    def __init__(self, path: Path | None) -> None:
        self.sent = self.received = self.requests = self.connections = 0
        self._memory = bytearray(COUNTERS.size) if path is None else _mapped_file(path)

    def publish(self) -> None:
        """Show the present values to the readers of the file."""
        values = self.sent, self.received, self.requests, self.connections
        COUNTERS.pack_into(self._memory, 0, *values)


def _mapped_file(path: Path) -> mmap.mmap:
    path.write_bytes(bytes(COUNTERS.size))
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), COUNTERS.size)


class Flow:
    """One direction of a connection: source socket, pipe, sink socket."""

    def __init__(self, source: socket.socket, sink: socket.socket, line: DelayLine) -> None:
        self._source = source.fileno()
        self._sink = sink
        self._line = line
        self._pipe_out, self._pipe_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Beyond a limit per user the kernel refuses: such a connection is only slower.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._pipe_in, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self.readable = True
        self.writable = True
        self.finished = False
        self._end: float | None = None  # when the source's end of file may arrive at the sink

    def pull(self, now: float) -> int:
        """Take from the source what fits, and return how many bytes that were."""
        room = PIPE_SIZE - self._line.queued
        if not self.readable or room <= 0:
            return 0
        try:
            size = os.splice(self._source, self._pipe_in, room, flags=SPLICE_FLAGS)
        except BlockingIOError:
            # The source is empty or the pipe is full, and the kernel does not say which.
            # A pipe without bytes is not full; else the next push() is followed by a pull().
            if not self._line.queued:
                self.readable = False
            return 0
        if size:
            self._line.arrive(now, size)
        else:
            self.readable = False
            self._end = self._line.due(now)
        return size

    def push(self, now: float) -> int:
        """Hand the sink what may leave by now, and return how many bytes that were."""
        size = self._line.allowance(now)
        if not size:
            self._push_end(now)
            return 0
        try:
            moved = os.splice(self._pipe_out, self._sink.fileno(), size, flags=SPLICE_FLAGS)
        except BlockingIOError:
            self.writable = False
            return 0
        self._line.leave(moved)
        return moved

    def _push_end(self, now: float) -> None:
        if self._end is not None and not self._line.queued and self._end <= now:
            self._end = None
            self.finished = True
            self._sink.shutdown(socket.SHUT_WR)

    def next_time(self) -> float | None:
        """When this flow wants to push again, or None when only an event can tell."""
        if self._line.queued:
            return self._line.next_time() if self.writable else None
        return self._end

    def close(self) -> None:
        """Give the pipe back."""
        os.close(self._pipe_out)
        os.close(self._pipe_in)


class Connection:
    """A client's socket, the server's socket, and the two flows between them."""

    def __init__(
        self, client: socket.socket, target: tuple[str, int], delay: float, rate: float, now: float
    ) -> None:
        self.client = client
        self.server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        for end in (self.client, self.server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.connect_ex(target)
        opened = now + 2 * delay
        self.up = Flow(client, self.server, DelayLine(delay, rate, opened))
        self.down = Flow(self.server, client, DelayLine(delay, rate, opened))
        self.spoke_last: Flow | None = None

    @property
    def finished(self) -> bool:
        """Whether both ends have said that they will send no more."""
        return self.up.finished and self.down.finished

    def close(self) -> None:
        """Give back all descriptors."""
        for end in (self.client, self.server, self.up, self.down):
            end.close()


class Proxy:
    """Accepts connections on loopback and relays each to *target*, slowly.

    *delay* is one way, in seconds; *rate* is in bytes per second for each connection and
    direction.
    """

    def __init__(
        self, target: tuple[str, int], delay: float, rate: float, counters: Counters, port: int = 0
    ) -> None:
        self._target = target
        self._delay = delay
        self._rate = rate
        self._counters = counters
        self._listener = socket.create_server(("127.0.0.1", port), backlog=512)
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._ends: dict[int, Connection] = {}
        self._flowing: dict[Flow, Connection] = {}

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._listener.getsockname()[1]

    def serve(self) -> None:
        """Relay until an exception, such as that of a signal handler, ends it."""
        moved = 0
        while True:
            if moved >= MUCH:
                # While much flows, each event would bring a few packets: gather them.
                time.sleep(TICK)
            self._wait()
            moved = self._handle_events() + self._move()
            self._counters.publish()

    def close(self) -> None:
        """End all connections."""
        for connection in set(self._ends.values()):
            self._drop(connection)
        self._epoll.close()
        self._listener.close()

    def _wait(self) -> None:
        """Wait for an event, or until the next bytes are due."""
        times = [at for flow in self._flowing if (at := flow.next_time()) is not None]
        timeout = max(0.0, min(times) - time.monotonic()) if times else None
        # epoll counts in milliseconds; select on the epoll descriptor in microseconds.
        select.select([self._epoll.fileno()], [], [], timeout)

    def _handle_events(self) -> int:
        """Take what has come, and return how many bytes that were."""
        moved = 0
        now = time.monotonic()
        for descriptor, events in self._epoll.poll(0):
            if descriptor == self._listener.fileno():
                self._accept(now)
            elif (connection := self._ends.get(descriptor)) is not None:
                moved += self._notice(connection, descriptor, events, now)
        return moved

    def _accept(self, now: float) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                client, _ = self._listener.accept()
                connection = Connection(client, self._target, self._delay, self._rate, now)
                for end in (connection.client, connection.server):
                    self._ends[end.fileno()] = connection
                    self._epoll.register(end, SOCKET_EVENTS)
                self._counters.connections += 1

    def _notice(self, connection: Connection, descriptor: int, events: int, now: float) -> int:
        """Note what an event allows, and pull what has come."""
        incoming, outgoing = connection.up, connection.down
        if descriptor == connection.server.fileno():
            incoming, outgoing = outgoing, incoming
        if events & select.EPOLLOUT:
            outgoing.writable = True
        if not events & ~select.EPOLLOUT:
            return 0
        incoming.readable = True
        return self._pull(connection, incoming, now)

    def _pull(self, connection: Connection, flow: Flow, now: float) -> int:
        try:
            size = flow.pull(now)
        except OSError:
            self._drop(connection)
            return 0
        if flow.next_time() is not None:
            self._flowing[flow] = connection
        if size:
            self._count(connection, flow, size)
        return size

    def _count(self, connection: Connection, flow: Flow, size: int) -> None:
        if flow is connection.down:
            self._counters.received += size
        else:
            self._counters.sent += size
            self._counters.requests += connection.spoke_last is not flow
        connection.spoke_last = flow

    def _move(self) -> int:
        """Push all that is due, refill the emptied pipes, and return how many bytes left."""
        moved = 0
        now = time.monotonic()
        for flow, connection in list(self._flowing.items()):
            if flow not in self._flowing:
                continue  # its connection was dropped a moment ago
            try:
                pushed = flow.push(now)
            except OSError:
                self._drop(connection)
                continue
            if pushed:
                moved += pushed
                self._pull(connection, flow, now)
            self._retire(flow, connection)
        return moved

    def _retire(self, flow: Flow, connection: Connection) -> None:
        if connection.finished:
            self._drop(connection)
        elif flow.next_time() is None and flow.writable:
            self._flowing.pop(flow, None)

    def _drop(self, connection: Connection) -> None:
        if connection.client.fileno() < 0:
            return  # dropped before, in this turn of the loop
        for end in (connection.client, connection.server):
            if self._ends.pop(end.fileno(), None) is not None:
                self._epoll.unregister(end)
        self._flowing.pop(connection.up, None)
        self._flowing.pop(connection.down, None)
        connection.close()


def _parse_address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def _stop(number: int, _frame: object) -> None:
    raise SystemExit(0 if number == signal.SIGTERM else 128 + number)


def main() -> int:
    """Run a proxy, which prints its port on a line of its own, or check one."""
    parser = argparse.ArgumentParser(prog="latency_proxy", description=__doc__)
    parser.add_argument("--target", type=_parse_address, metavar="HOST:PORT")
    parser.add_argument("--port", type=int, default=0, help="where to listen (0: any free port)")
    parser.add_argument("--delay-ms", type=float, default=10.0, help="delay each way")
    parser.add_argument("--rate", type=float, default=90e6, help="bytes/s, each connection and way")
    parser.add_argument("--statistics", type=Path, help="file that shows the counters")
    parser.add_argument("--self-check", action="store_true", help="measure what it does, and exit")
    arguments = parser.parse_args()
    if arguments.self_check:
        from benchmarks.proxy_check import check_proxy

        return check_proxy()
    if arguments.target is None:
        parser.error("--target is needed")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # six descriptors a connection
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    counters = Counters(arguments.statistics)
    proxy = Proxy(
        arguments.target, arguments.delay_ms / 1000, arguments.rate, counters, arguments.port
    )
    print(proxy.port, flush=True)
    with contextlib.closing(proxy):
        proxy.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
