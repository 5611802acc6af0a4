"""Decides when bytes leave a simulated link: after its delay, and no faster than its rate.

Pure bookkeeping: the bytes themselves wait elsewhere, and the caller says what time it is.
"""

from collections import deque

# One send may run ahead of the rate by this much, so that a small message leaves whole and a
# long one does not wake the relay for every packet.
BURST = 64 << 10


class DelayLine:
    """The bytes that are under way in one direction of one connection.

    *delay* is in seconds, *rate* in bytes per second.  *opened* is the time at which the other
    end could have sent its first byte: what arrives earlier counts as arrived then, which is
    how a connection's set-up costs its round trip.
    """

    __slots__ = ("_delay", "_free", "_opened", "_queue", "_rate", "queued")

    def __init__(self, delay: float, rate: float, opened: float) -> None:
        self._delay = delay
        self._rate = rate
        self._opened = opened
        self._free = 0.0  # when the link has put out all that it was given so far
        self._queue: deque[tuple[float, int]] = deque()  # (due, size), in the order of arrival
        self.queued = 0

    def due(self, now: float) -> float:
        """When something that arrives at *now* may begin to leave."""
        return max(now, self._opened) + self._delay

    def arrive(self, now: float, size: int) -> None:
        """Take note of *size* bytes that have arrived at *now*."""
        self._queue.append((self.due(now), size))
        self.queued += size

    def allowance(self, now: float) -> int:
        """How many bytes may leave at *now*."""
        if not self._queue:
            return 0
        begin = self.next_time()
        if begin > now:
            return 0
        budget = int((now - begin) * self._rate) + BURST
        total = 0
        for due, size in self._queue:
            if due > now or total >= budget:
                break
            total += size
        return min(total, budget)

    def leave(self, size: int) -> None:
        """Take note that *size* bytes, at most the allowance, have left."""
        self._free = self.next_time() + size / self._rate
        self.queued -= size
        while size:
            due, first = self._queue.popleft()
            if first > size:
                self._queue.appendleft((due, first - size))
                return
            size -= first

    def next_time(self) -> float:
        """When the first byte of a line that is not empty may leave."""
        return max(self._queue[0][0], self._free)
