"""The connections to one endpoint: how many, who gets one next, and which may be used again."""

from collections import deque

import trio

from s3mount.s3.connection import Connection
from s3mount.s3.dial import Dialer

_MAX_IDLE_SECONDS = 60.0  # Middle boxes forget silent connections, some after 100 s.


class Slots:
    """A limit of connections, of which those in no hurry may use three quarters.

    A slot that becomes free goes to the urgent one that waits longest, else to another one
    that waits, as long as its share lasts.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._patient_free = max(1, limit * 3 // 4)
        self._urgent: deque[trio.Event] = deque()
        self._patient: deque[trio.Event] = deque()

    def take(self, urgent: bool) -> bool:
        """Take a slot if one is to be had at once."""
        if not self._free or self._urgent:
            return False
        if not urgent:
            if not self._patient_free or self._patient:
                return False
            self._patient_free -= 1
        self._free -= 1
        return True

    async def acquire(self, urgent: bool) -> None:
        """Wait for a slot and take it."""
        if self.take(urgent):
            return
        queue = self._urgent if urgent else self._patient
        granted = trio.Event()
        queue.append(granted)
        try:
            await granted.wait()
        except trio.Cancelled:
            if granted.is_set():
                self.release(urgent)
            else:
                queue.remove(granted)
            raise

    def release(self, urgent: bool) -> None:
        """Give a slot back, and hand it to who waits."""
        self._free += 1
        if not urgent:
            self._patient_free += 1
        self._grant()

    def _grant(self) -> None:
        while self._free and self._urgent:
            self._free -= 1
            self._urgent.popleft().set()
        while self._free and self._patient_free and self._patient:
            self._free -= 1
            self._patient_free -= 1
            self._patient.popleft().set()


class Pool:
    """Keeps idle connections, the one used last on top, so that few are kept warm."""

    def __init__(self, dialer: Dialer, slots: Slots) -> None:
        self._dialer = dialer
        self._slots = slots
        self._idle: list[Connection] = []
        self._closed = False

    async def dial(self) -> Connection:
        """Open a connection that is not one of the pool's, and takes no place; raises `Broken`."""
        return await self._dialer.open()

    def take(self, urgent: bool) -> Connection | None:
        """Take an idle connection, if both it and a place are there."""
        if not self._idle or not self._slots.take(urgent):
            return None
        connection = self._take_idle()
        if connection is None:
            self._slots.release(urgent)
        return connection

    async def acquire(self, *, urgent: bool, fresh: bool) -> Connection:
        """Wait for a place, then take an idle connection, or open one (always when *fresh*)."""
        await self._slots.acquire(urgent)
        try:
            if not fresh:
                connection = self._take_idle()
                if connection is not None:
                    return connection
            return await self._dialer.open()
        except BaseException:
            self._slots.release(urgent)
            raise

    def release(self, connection: Connection, now: float, *, urgent: bool, reusable: bool) -> None:
        """Give a connection back; it is kept only when it is *reusable*."""
        if reusable and not self._closed:
            connection.idle_since = now
            self._idle.append(connection)
        else:
            connection.close()
        self._slots.release(urgent)

    def _take_idle(self) -> Connection | None:
        oldest = trio.current_time() - _MAX_IDLE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since >= oldest and connection.clean:
                if self._idle and self._idle[0].idle_since < oldest:
                    self._idle.pop(0).close()
                return connection
            connection.close()
        return None

    def close_idle(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            self._idle.pop().close()

    def close(self) -> None:
        """Close idle connections now, and the others when they come back."""
        self._closed = True
        self.close_idle()
