"""Crashes by the hundred, of the daemon and of the store: ``scripts/soak --crashes 200``.

What each call has acknowledged has to be there afterwards; `tests.crashload` knows.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

from s3mount.demo.weed import Credentials
from tests.crashload import Worker, end, planted, successors
from tests.mounts import Bucket, Mounter
from tests.server import await_orphaned_requests
from tests.servers import Server, make_server

WRITEBACK = ("-o", "writeback")
LONGEST = 3.0  # Seconds of work before a crash.
REPORT_EACH = 20
PAUSE = 2.0  # Seconds that a stopped server says nothing.
WAYS = ("freeze", "stop", "kill")


@contextmanager
def stage(directory: Path, server_name: str) -> Iterator[tuple[Server, Bucket, Mounter]]:
    """A server, a bucket, and whoever mounts it."""
    server = make_server(server_name, directory / "server", Credentials.random())
    assert server is not None, f"{server_name} is not installed"
    (directory / "server").mkdir()
    with server:
        bucket = Bucket("crashes", server.url, server.credentials)
        server.client().create_bucket(Bucket=bucket.name)
        mounter = Mounter(directory)
        mounter.expect_log(".", optional=True)  # Of recoveries and of the store being away.
        try:
            yield server, bucket, mounter
        finally:
            mounter.finish()


def complaints_of(workers: list[Worker], root: Path) -> list[str]:
    """What is not as it was acknowledged."""
    return [wrong for worker in workers for wrong in worker.complaints(root)]


def crash_daemon(directory: Path, count: int, seed: int) -> list[str]:
    """Kill the daemon *count* times at random moments; returns what was lost.

    Each mount in three does without writeback, so what one mode has left the other finishes.
    """
    random, wrong = Random(seed), []
    workers: list[Worker] = []
    steps = 0
    with stage(directory, "weed") as (server, bucket, mounter):
        where = ("--state-dir", str(directory / "state"))
        for number in range(count):
            one = mounter(bucket, *(WRITEBACK if number % 3 else ()), *where, name="one")
            wrong += [f"crash {number}: {one_}" for one_ in complaints_of(workers, one.path)]
            workers = successors(workers, one.path, seed + number) or planted(one.path)
            for worker in workers:
                worker.start()
            time.sleep(random.uniform(0.0, LONGEST))
            one.kill()
            await_orphaned_requests(bucket.url)
            for worker in workers:
                worker.join()
            steps += sum(worker.steps for worker in workers)
            if number % REPORT_EACH == REPORT_EACH - 1:
                print(f"{number + 1} crashes so far: {len(wrong)} complaints", flush=True)
        last = mounter(bucket, *where, name="one")
        wrong += complaints_of(workers, last.path)
        if last.umount() != 0:
            wrong.append("something could not be uploaded")
        wrong += left_behind(server, bucket, directory)
    print(f"{count} crashes of the daemon in {steps} operations: {len(wrong)} complaints")
    return wrong


def left_behind(server: Server, bucket: Bucket, directory: Path) -> list[str]:
    """Uploads and journals that nobody needs any more."""
    uploads = server.client().list_multipart_uploads(Bucket=bucket.name).get("Uploads", ())
    wrong = [f"an upload of {one['Key']} was left behind" for one in uploads]
    return wrong + [f"{slot} was left behind" for slot in (directory / "state").rglob("slot-*")]


def crash_server(
    directory: Path, server_name: str, count: int, seed: int, ways: Sequence[str] = WAYS
) -> list[str]:
    """Interrupt the store *count* times, in one of *ways*; returns what was lost or failed."""
    random = Random(seed)
    with stage(directory, server_name) as (server, bucket, mounter):
        wrong, steps = [], 0
        for options in ((), WRITEBACK):
            one = mounter(bucket, *options, "--state-dir", str(directory / "state"), name="one")
            root = one.path / f"mode{len(options)}"
            root.mkdir()
            load, told = begin_load(root)
            for _ in range(count):
                time.sleep(random.uniform(0.5, LONGEST))
                hurt(server, random, random.choice(ways))
            told.send(root)
            done, complaints = told.recv()
            steps, wrong = steps + done, wrong + complaints
            if one.umount() != 0:
                wrong.append("something could not be uploaded")
            two = mounter(bucket, name="two")
            told.send(two.path / root.name)
            wrong += told.recv()[1]
            load.join()
            two.umount()
        wrong += left_behind(server, bucket, directory)
    what = f"{2 * count} interruptions of {server_name}"
    print(f"{what} in {steps} operations: {len(wrong)} complaints")
    return wrong


def begin_load(root: Path) -> tuple[BaseProcess, Connection]:
    """Have workers work below *root*, in a process of their own.

    Whoever starts a server must not have files open that wait for that server to be closed.
    Sent a path, the process answers how many steps were made and what is wrong there: once when
    the workers are to stop, and once more.
    """
    forked = multiprocessing.get_context("fork")
    ours, theirs = forked.Pipe()
    load = forked.Process(target=work, args=(root, theirs))
    load.start()
    theirs.close()
    return load, ours


def work(root: Path, told: Connection) -> None:
    """Be the process of the workers."""
    workers = planted(root)
    for worker in workers:
        worker.start()
    first = told.recv()
    end(workers)
    failures = [f"worker {one.number}: {one.failure}" for one in workers if one.failure]
    told.send((sum(one.steps for one in workers), failures + complaints_of(workers, first)))
    told.send((0, complaints_of(workers, told.recv())))


def hurt(server: Server, random: Random, how: str) -> None:
    """Have the server say nothing for a while, or end or crash and come back."""
    if how == "freeze":
        os.kill(server.process_id, signal.SIGSTOP)
        time.sleep(random.uniform(0.1, PAUSE))
        os.kill(server.process_id, signal.SIGCONT)
        return
    server.stop() if how == "stop" else server.kill()
    time.sleep(random.uniform(0.0, PAUSE))
    server.start()
