"""A proxy between a mount and its store that does to requests what `faults` describes.

One thread a connection, blocking sockets, bodies streamed in small pieces: nothing clever, so
that what a test sees is the fault and not the proxy.
"""

import argparse
import re
import socket
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from random import Random
from typing import IO, NoReturn, Self
from urllib.parse import urlsplit

from s3mount.demo.weed import LOOPBACK
from tests.faults import Cut, Delay, Fault, Hang, Plan, Point, Request, Reset, Rule, Throttle
from tests.wire import PIECE, Body, Disconnect, Head, Stream, flipped, parts

LINGER = 10.0  # Seconds for a client that sends its body although it was answered.
PATIENCE = 120.0  # Seconds that a socket may be silent before its exchange is given up.
SECRET_HEADER = re.compile(r"authorization|security-token|customer-key|cookie")
SECRET_WORD = re.compile(r"(?i)(X-Amz-(?:Signature|Credential|Security-Token)=)[^&]*")


@dataclass(slots=True)
class Exchange:
    """One request in the log.  `received` and `sent` count body bytes from and to the client.

    `status` is what the client was told, None when it was told nothing; `seconds` is how long
    the exchange took, None while it lasts.
    """

    request: Request
    faults: Sequence[Fault]
    started: float = field(default_factory=time.monotonic)
    status: int | None = None
    received: int = 0
    sent: int = 0
    seconds: float | None = None

    @property
    def operation(self) -> str:
        """The S3 call."""
        return self.request.operation


class Relay:
    """Carries the requests of one client connection to the store, one after the other."""

    def __init__(self, proxy: "FaultProxy", client: Stream) -> None:
        self._proxy = proxy
        self._client = client
        self._upstream: Stream | None = None
        self._body_unread = False

    def run(self) -> None:
        """Serve the client until one side closes."""
        reset = False
        try:
            while head := self._client.read_head():
                if not self._serve(head):
                    break
        except Disconnect as end:
            reset = end.reset
        except (OSError, ssl.SSLError):
            pass  # One side went away: the other one sees its connection close.
        finally:
            self._close_upstream()
            self._client.close(reset=reset or self._proxy.is_down)

    def _serve(self, head: Head) -> bool:
        exchange = self._proxy.begin(request_of(head))
        plan = Plan(exchange.faults)
        try:
            self._proxy.sleep(plan.delay)
            self._end_at(Point.REQUEST, plan)
            if plan.late:
                self._keep_for_later(head, exchange)
            if plan.answer and not plan.answer.late:
                return self._answer(head, exchange, plan)
            answer = self._forward(head, exchange, plan)
            self._end_at(Point.ANSWER, plan)
            if plan.answer:
                self._drain(self._answer_body(head, answer))
                return self._answer(head, exchange, plan, body_left=False)
            return self._pass_back(head, answer, exchange, plan)
        finally:
            exchange.seconds = time.monotonic() - exchange.started

    def _end_at(self, point: Point, plan: Plan) -> None:
        end = plan.end_at(point)
        if isinstance(end, Hang):
            self._hang()
        if end:
            raise Disconnect(reset=isinstance(end, Reset))

    def _hang(self) -> None:
        while not self._proxy.stopping.wait(0.05):
            if self._client.is_stale():
                return

    def _forward(self, head: Head, exchange: Exchange, plan: Plan) -> Head:
        if plan.twice:
            return self._forward_twice(head, exchange, plan)
        upstream = self._connected()
        upstream.socket.sendall(head.raw)
        if head.expects_continue:
            answer = self._final_head(upstream)
            if answer.status != 100:
                self._body_unread = True
                return answer
            self._client.socket.sendall(answer.raw)
        self._send_body(upstream, self._request_body(head, exchange), plan)
        return self._final_head(upstream)

    def _keep_for_later(self, head: Head, exchange: Exchange) -> NoReturn:
        if head.expects_continue:
            self._client.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = b"".join(piece for piece, _ in self._request_body(head, exchange))
        self._proxy.keep_late(head.without("expect") + body)
        raise Disconnect(reset=True)

    def _forward_twice(self, head: Head, exchange: Exchange, plan: Plan) -> Head:
        if head.expects_continue:
            self._client.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        with tempfile.TemporaryFile() as spool:
            for piece, _ in self._request_body(head, exchange):
                spool.write(piece)
            first = self._deliver(head, spool)
            self._drain(self._answer_body(head, first))
            self._close_upstream()
            return self._deliver(head, spool)

    def _deliver(self, head: Head, spool: IO[bytes]) -> Head:
        upstream = self._connected()
        upstream.socket.sendall(head.without("expect"))
        spool.seek(0)
        while piece := spool.read(PIECE):
            upstream.socket.sendall(piece)
        return self._final_head(upstream)

    def _send_body(self, upstream: Stream, body: Body, plan: Plan) -> None:
        end = plan.end_at(Point.REQUEST_BODY)
        limit = end.body_bytes if end else None
        for piece, _ in self._shaped(body, plan, request=True, limit=limit):
            try:
                upstream.socket.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                # The store has answered before it had read everything: pass that answer on.
                self._body_unread = True
                return
        self._end_at(Point.REQUEST_BODY, plan)

    def _request_body(self, head: Head, exchange: Exchange) -> Body:
        for piece, is_content in self._client.body(head):
            exchange.received += len(piece) if is_content else 0
            yield piece, is_content

    def _connected(self) -> Stream:
        if self._upstream and self._upstream.is_stale():
            self._close_upstream()
        if self._upstream is None:
            connection = socket.create_connection(self._proxy.upstream, timeout=PATIENCE)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._upstream = Stream(connection)
        return self._upstream

    def _close_upstream(self) -> None:
        if self._upstream:
            self._upstream.close()
            self._upstream = None

    @staticmethod
    def _final_head(upstream: Stream) -> Head:
        head = upstream.read_head()
        if head is None:
            raise Disconnect(reset=False)
        return head

    def _pass_back(self, head: Head, answer: Head, exchange: Exchange, plan: Plan) -> bool:
        self._send_head(answer, exchange, plan)
        end = plan.end_at(Point.BODY) or plan.cut
        limit = end.body_bytes if end else None
        body = self._answer_body(head, answer)
        for piece, is_content in self._shaped(body, plan, request=False, limit=limit):
            # Counted first: whoever has received it can see it in the log.
            exchange.sent += len(piece) if is_content else 0
            self._client.socket.sendall(piece)
            if self._proxy.is_down:  # An answer without an end would go on for ever.
                raise Disconnect(reset=True)
        self._end_at(Point.BODY, plan)
        if plan.cut:
            raise Disconnect(reset=False)
        if not answer.keeps_alive:
            self._close_upstream()
        return head.keeps_alive and answer.keeps_alive and not self._body_unread

    def _send_head(self, answer: Head, exchange: Exchange, plan: Plan) -> None:
        raw = answer.raw
        if plan.end_at(Point.HEAD):
            self._client.socket.sendall(raw[: len(raw) // 2])
            self._end_at(Point.HEAD, plan)
        if plan.cut and plan.cut.honest:
            raw = self._shortened(answer, plan.cut)
        exchange.status = answer.status
        self._client.socket.sendall(raw)

    @staticmethod
    def _shortened(answer: Head, cut: Cut) -> bytes:
        size = min(cut.body_bytes, int(answer.headers.get("content-length", cut.body_bytes)))
        rest = answer.without("content-length")
        return rest.replace(b"\r\n", b"\r\nContent-Length: %d\r\n" % size, 1)

    def _answer_body(self, head: Head, answer: Head) -> Body:
        if head.words[0] == "HEAD" or answer.status in (204, 304) or self._upstream is None:
            return iter(())
        return self._upstream.body(answer, until_close=True)

    def _answer(
        self, head: Head, exchange: Exchange, plan: Plan, *, body_left: bool = True
    ) -> bool:
        answer = plan.answer
        assert answer is not None
        waiting = body_left and head.expects_continue
        if body_left and not waiting:
            self._drain(self._request_body(head, exchange))
        content = answer.body(exchange.request.path)
        lines = [f"HTTP/1.1 {answer.status} {answer.code}", "Content-Type: application/xml"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        lines += ["Connection: close"] if waiting else []
        lines += [f"Content-Length: {len(content)}", "", ""]
        content = b"" if head.words[0] == "HEAD" else content
        exchange.status, exchange.sent = answer.status, len(content)
        self._client.socket.sendall("\r\n".join(lines).encode() + content)
        if waiting:
            self._client.linger(LINGER)
        return not waiting

    @staticmethod
    def _drain(body: Body) -> None:
        for _ in body:
            pass

    def _shaped(self, body: Body, plan: Plan, *, request: bool, limit: int | None) -> Body:
        """Yield *body* with bits flipped, at the plan's rate, and at most *limit* bytes of it."""
        passed, started = 0, time.monotonic()
        for whole, is_content in body:
            piece = whole
            if is_content:
                piece = flipped(piece, [one - passed for one in plan.flips(request=request)])
                piece = piece if limit is None else piece[: limit - passed]
            for part in parts(piece, plan.rate):
                yield part, is_content
                passed += len(part) if is_content else 0
                if plan.rate is not None:
                    self._proxy.sleep(started + passed / plan.rate - time.monotonic())
            if limit is not None and passed >= limit:
                return


def request_of(head: Head) -> Request:
    """Return what the log and the rules may see of a request."""
    method, target = head.words[0], head.words[1]
    path, _, query = target.partition("?")
    headers = {
        name: value for name, value in head.headers.items() if not SECRET_HEADER.search(name)
    }
    return Request(method, path, SECRET_WORD.sub(r"\1***", query), headers)


class FaultProxy:
    """Listens on a free loopback port and passes everything on to *upstream* (a URL).

    Use it as a context manager.  With *tls* clients have to speak TLS to it.
    """

    def __init__(self, upstream: str, *, seed: int = 0, tls: ssl.SSLContext | None = None) -> None:
        address = urlsplit(upstream)
        self.upstream = (address.hostname or LOOPBACK, address.port or 80)
        self.stopping = threading.Event()
        self._tls = tls
        self._random = Random(seed)
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._log: list[Exchange] = []
        self._late: list[bytes] = []
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._threads: dict[threading.Thread, Stream] = {}
        # Bound and never listening: the port stays ours, and refuses, while we are down.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind((LOOPBACK, 0))
        self.port: int = self._reserved.getsockname()[1]

    @property
    def url(self) -> str:
        """The endpoint URL that clients are given."""
        return f"{'https' if self._tls else 'http'}://{LOOPBACK}:{self.port}"

    @property
    def is_down(self) -> bool:
        """Whether connections are refused."""
        return self._listener is None

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.down()
        self._reserved.close()

    def up(self) -> None:
        """Accept connections."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, self.port))
        listener.listen(256)
        self._listener = listener
        self._acceptor = threading.Thread(target=self._accept, args=(listener,), daemon=True)
        self._acceptor.start()

    def down(self) -> None:
        """Refuse new connections and reset those there are; rules and log stay."""
        if self._listener is None or self._acceptor is None:
            return
        listener, self._listener = self._listener, None
        listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        listener.close()
        with self._lock:
            left = dict(self._threads)
        for stream in left.values():
            with suppress(OSError):
                # Wakes its thread, which resets: closing a socket under it would not.
                stream.socket.shutdown(socket.SHUT_RD)
        for thread in left:
            thread.join(PATIENCE)

    def inject(self, fault: Fault, **conditions: object) -> Rule:
        """Add a rule with the conditions of `Rule`; the rule counts its hits."""
        rule = Rule(fault=fault, **conditions)
        with self._lock:
            self._rules.append(rule)
        return rule

    def remove(self, rule: Rule) -> None:
        """Take a rule back."""
        with self._lock:
            self._rules.remove(rule)

    def clear(self) -> None:
        """Take all rules back."""
        with self._lock:
            self._rules.clear()

    @property
    def log(self) -> Sequence[Exchange]:
        """All exchanges, in the order in which they began."""
        with self._lock:
            return list(self._log)

    def forget(self) -> None:
        """Empty the log."""
        with self._lock:
            self._log.clear()

    @property
    def connections(self) -> Sequence[Stream]:
        """The client connections that are open now."""
        with self._lock:
            return list(self._threads.values())

    def counts(self) -> Counter[str]:
        """Return how often each S3 operation was asked for."""
        return Counter(exchange.operation for exchange in self.log)

    def begin(self, request: Request) -> Exchange:
        """Log a request and decide what happens to it."""
        with self._lock:
            struck = [rule.fault for rule in self._rules if rule.strikes(request, self._random)]
            exchange = Exchange(request, struck)
            self._log.append(exchange)
            return exchange

    def keep_late(self, request: bytes) -> None:
        """Keep a request whose client has gone."""
        with self._lock:
            self._late.append(request)

    def deliver_late(self) -> Sequence[int]:
        """Deliver what `Late` has kept, and return the statuses of the answers."""
        with self._lock:
            kept, self._late = self._late, []
        statuses = []
        for request in kept:
            with closing(socket.create_connection(self.upstream, timeout=PATIENCE)) as connection:
                connection.sendall(request)
                answer = Stream(connection).read_head()
                statuses.append(answer.status if answer else 0)
        return statuses

    def sleep(self, seconds: float) -> None:
        """Wait, but not longer than the proxy lives."""
        if seconds > 0:
            self.stopping.wait(seconds)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = Stream(connection)
            thread = threading.Thread(target=self._serve, args=(stream,), daemon=True)
            with self._lock:
                self._threads[thread] = stream
            thread.start()

    def _serve(self, stream: Stream) -> None:
        try:
            if self._tls:
                stream.socket = self._tls.wrap_socket(stream.socket, server_side=True)
            Relay(self, stream).run()
        except (OSError, ssl.SSLError):
            stream.close()
        finally:
            with self._lock:
                del self._threads[threading.current_thread()]


def main() -> None:
    """Run the proxy by itself, as a slow network for benchmarks."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("upstream", help="URL of the store")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each request")
    parser.add_argument("--rate", type=float, help="bytes a second of each request")
    options = parser.parse_args()
    with FaultProxy(options.upstream) as proxy:
        proxy.inject(Delay(options.delay))
        if options.rate:
            proxy.inject(Throttle(options.rate))
        print(proxy.url, flush=True)
        with suppress(KeyboardInterrupt):
            proxy.stopping.wait()


if __name__ == "__main__":
    main()
