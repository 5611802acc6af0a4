"""The process that gives the kernel notices which may have to wait.

A notice about a name waits for the lock of its directory, one about bytes for their pages; whoever
holds them may be waiting for an answer of the daemon.  No signal ends such a wait, so if a thread
of the daemon was in it, the daemon could not be killed: ``/dev/fuse`` would stay open, and the
kernel, and everybody who uses the mount, would go on waiting for a process that answers no more.

So they wait here, with a device of their own (FUSE_DEV_IOC_CLONE).  When the daemon has died, the
kernel answers what it had read, and what is asked after that is answered here, by "not
connected", until nothing waits any more; with our end the connection ends, too.

Run by the daemon (`s3mount.kernelcache`) as a program of its own, with nothing but the standard
library: ``noticer.py DEVICE``.  On standard input come batches, each with its size as four bytes,
and one byte goes out for each that was given.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import struct
import sys
import threading

SIZE = struct.Struct("=I")  # also the first field of fuse_out_header
REQUEST = struct.Struct("=IIQ")  # fuse_in_header: size, operation, number
ANSWER = struct.Struct("=IiQ")  # fuse_out_header: size, error or kind of the notice, number
LARGEST = (1 << 20) + (64 << 10)  # Bytes of a request: what is written at once, and its head.
FORGET, INTERRUPT, BATCH_FORGET = 2, 36, 42  # Requests that want no answer.
LOOK_INTERVAL_MS = 20


def main() -> None:
    """Give notices until standard input ends, and then see to it that the last one comes back."""
    device = int(sys.argv[1])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # They are meant for the daemon; we end with it.
    giver = threading.Thread(target=give_all, args=(device,), daemon=True)
    giver.start()
    daemon = select.poll()
    daemon.register(sys.stdin.fileno(), 0)  # Nothing but its end.
    daemon.poll()
    while giver.is_alive():
        refuse(device)
        giver.join(0)
    os._exit(0)


def give_all(device: int) -> None:
    """Give what comes in; returns when there is no more."""
    source = sys.stdin.buffer
    while head := source.read(SIZE.size):
        batch = source.read(SIZE.unpack(head)[0])
        position = 0
        while position < len(batch):
            (size,) = SIZE.unpack_from(batch, position)
            with contextlib.suppress(OSError):  # The kernel does not know it any more.
                os.write(device, batch[position : position + size])
            position += size
        with contextlib.suppress(OSError):
            os.write(sys.stdout.fileno(), b".")


def refuse(device: int) -> None:
    """Answer the next request, if one comes soon, in the place of a daemon that has died."""
    requests = select.poll()
    requests.register(device, select.POLLIN)
    if not requests.poll(LOOK_INTERVAL_MS):
        return
    with contextlib.suppress(OSError):
        request = os.read(device, LARGEST)
        _, operation, number = REQUEST.unpack_from(request)
        if operation not in (FORGET, INTERRUPT, BATCH_FORGET):
            os.write(device, ANSWER.pack(ANSWER.size, -errno.ENOTCONN, number))


if __name__ == "__main__":
    main()
