"""A long mixed load of many processes on one mount, with faults on: ``scripts/soak --minutes N``.

Every process works in a directory of its own and knows what has to be in it.  In the end the
bucket is compared with what they know; until then memory and descriptors of the daemon are
watched.  Exit code 0: nothing was lost or wrong, and nothing has grown.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from s3mount.demo.weed import Credentials
from tests.crashsoak import crash_daemon, crash_server
from tests.faultproxy import FaultProxy
from tests.faults import INTERNAL_ERROR, LOST_ANSWER, SLOW_DOWN, Delay, Flip, Point, Reset, Twice
from tests.largesoak import check_all
from tests.mounts import Bucket, Mount, Mounter
from tests.servers import CHECKOUT, Server, make_server

PROCESSES = 32
SAMPLE_SECONDS = 5.0
MAX_MINUTES = 20.0
MIB = 1 << 20
SIZES = (0, 10, 5_000, 70_000, 1_500_000, 12 * MIB)
WEIGHTS = (1, 6, 6, 4, 2, 0.1)
MORE_MEMORY = 96 * MIB  # How much the second half of a run may need beyond the first.
MORE_DESCRIPTORS = 40


# -- one process -------------------------------------------------------------------------------


class Worker:
    """Changes and reads files in one directory, and knows their digests."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory = directory
        self._random = Random(seed)
        self._seed = seed
        self.files: dict[str, bytes] = {}
        self.operations = 0
        self._done: deque[str] = deque(maxlen=120)

    def run(self, seconds: float) -> None:
        """Work for some seconds; raises AssertionError for wrong bytes, OSError for a failure."""
        self._directory.mkdir()
        deadline = time.monotonic() + seconds
        steps = (self.create, self.append, self.change, self.rename, self.remove, self.read)
        while time.monotonic() < deadline:
            step = self._random.choices(steps, (4, 2, 2, 1, 1, 5))[0]
            self._done.append(step.__name__)
            step()
            self.operations += 1
        for name in list(self.files):
            self._check(name)

    def _any(self) -> str | None:
        name = self._random.choice(list(self.files)) if self.files else None
        self._done.append(str(name))
        return name

    def _body(self, size: int) -> bytes:
        return self._random.randbytes(size)

    def create(self) -> None:
        """A new file, or one that is written anew."""
        name = f"file-{self._random.randrange(20)}"
        self._done.append(name)
        body = self._body(self._random.choices(SIZES, WEIGHTS)[0])
        (self._directory / name).write_bytes(body)
        self.files[name] = body

    def append(self) -> None:
        """Some bytes at the end of a file."""
        if (name := self._any()) is not None:
            body = self._body(self._random.randrange(1, 20_000))
            with (self._directory / name).open("ab") as file:
                file.write(body)
            self.files[name] += body

    def change(self) -> None:
        """Some bytes inside a file."""
        if (name := self._any()) is not None and self.files[name]:
            at = self._random.randrange(len(self.files[name]))
            body = self._body(self._random.randrange(1, 20_000))
            with (self._directory / name).open("r+b") as file:
                file.seek(at)
                file.write(body)
            old = self.files[name]
            self.files[name] = old[:at] + body + old[at + len(body) :]

    def rename(self) -> None:
        """A file gets another name, perhaps one that is taken."""
        if (name := self._any()) is not None:
            target = f"file-{self._random.randrange(20)}"
            self._done.append(f"to {target}")
            (self._directory / name).rename(self._directory / target)
            self.files[target] = self.files.pop(name)

    def remove(self) -> None:
        """A file goes."""
        if (name := self._any()) is not None:
            (self._directory / name).unlink()
            del self.files[name]

    def read(self) -> None:
        """A file is read and compared."""
        if (name := self._any()) is not None:
            self._check(name)

    def _check(self, name: str) -> None:
        path, expected = self._directory / name, self.files[name]
        found = path.read_bytes()
        if found != expected:
            again = "right" if path.read_bytes() == expected else "wrong"
            raise AssertionError(
                f"{path}, after {list(self._done)}: {len(found)} bytes for {len(expected)}, "
                f"the same up to {same_until(found, expected)}, {again} when read again"
            )


def same_until(found: bytes, expected: bytes) -> int:
    """How many bytes are equal from the beginning on."""
    pairs = enumerate(zip(found, expected, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(found), len(expected)))


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def work(directory: Path, seed: int, seconds: float) -> None:
    """Be one of the processes, and print what has to be in the directory."""
    worker = Worker(directory, seed)
    worker.run(seconds)
    files = {name: digest(body) for name, body in worker.files.items()}
    print(json.dumps({"operations": worker.operations, "files": files}))


# -- all of them -------------------------------------------------------------------------------


@dataclass(slots=True)
class Watch:
    """Memory in bytes and open descriptors of a daemon, every few seconds."""

    process_id: int
    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def sample(self) -> None:
        """Take one sample."""
        status = Path(f"/proc/{self.process_id}/status").read_text()
        line = next(one for one in status.splitlines() if one.startswith("VmRSS"))
        self.memory.append(int(line.split()[1]) << 10)
        self.descriptors.append(len(list(Path(f"/proc/{self.process_id}/fd").iterdir())))

    def complaints(self) -> Iterator[str]:
        """What has grown from the first half of the run to the second."""
        half = max(1, len(self.memory) // 2)
        for what, samples, more in (
            ("memory", self.memory, MORE_MEMORY),
            ("descriptors", self.descriptors, MORE_DESCRIPTORS),
        ):
            if max(samples[half:], default=0) > max(samples[:half]) + more:
                yield f"{what} has grown: {samples}"


@contextmanager
def stage(directory: Path, seed: int) -> Iterator[tuple[Server, Bucket, FaultProxy, Mount]]:
    """A server, a bucket, a proxy and a mount."""
    server = make_server("weed", directory / "server", Credentials.random())
    assert server is not None, "SeaweedFS is not installed"
    (directory / "server").mkdir()
    with server:
        bucket = Bucket("soak", server.url, server.credentials)
        server.client().create_bucket(Bucket=bucket.name)
        with FaultProxy(server.url, seed=seed) as proxy:
            mounter = Mounter(directory)
            mounter.expect_log(".", optional=True)  # The faults are in the log.
            try:
                mounted = mounter(bucket, "--log-level", "warning", url=proxy.url)
                yield server, bucket, proxy, mounted
            finally:
                proxy.clear()
                mounter.finish()


def spoil(proxy: FaultProxy) -> None:
    """Have things go wrong, but nothing that a retry does not mend."""
    proxy.inject(SLOW_DOWN, probability=0.03)
    proxy.inject(INTERNAL_ERROR, probability=0.02)
    proxy.inject(Delay(0.3), probability=0.05)
    proxy.inject(LOST_ANSWER, method="PUT", probability=0.01)
    proxy.inject(Reset(Point.REQUEST), probability=0.01)
    proxy.inject(Reset(Point.BODY, 3_000), operation="GetObject", probability=0.02)
    # Not of small bodies: those would be whole, and SeaweedFS carries out what it has got whole
    # beside the next version; it looks at conditions before, and not when it commits.
    proxy.inject(Reset(Point.REQUEST_BODY, 3_000), operation="UploadPart", probability=0.03)
    proxy.inject(Flip(100, request=True), operation="UploadPart", probability=0.02)
    for operation in ("PutObject", "CompleteMultipartUpload", "CopyObject", "DeleteObject"):
        proxy.inject(Twice(), operation=operation, probability=0.02)


def start(mounted: Mount, seed: int, seconds: float) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.soak", "--work", str(mounted.path / f"dir-{number}"),
             "--seed", str(seed + number), "--minutes", str(seconds / 60)],
            cwd=CHECKOUT, stdout=subprocess.PIPE, text=True,
        )
        for number in range(PROCESSES)
    ]  # fmt: skip


def in_bucket(server: Server, bucket: Bucket) -> dict[str, str]:
    """The digests of all files in the bucket."""
    client, found = server.client(), {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name):
        for one in page.get("Contents", ()):
            if not one["Key"].endswith("/"):
                body = client.get_object(Bucket=bucket.name, Key=one["Key"])["Body"].read()
                found[one["Key"]] = digest(body)
    return found


def soak(minutes: float, seed: int) -> list[str]:
    """Run for *minutes*; returns what was wrong."""
    complaints: list[str] = []
    expected: dict[str, str] = {}
    with (
        tempfile.TemporaryDirectory(prefix="s3mount-soak-") as name,
        stage(Path(name), seed) as (server, bucket, proxy, mounted),
    ):
        spoil(proxy)
        watch = Watch(mounted.process_id)
        workers = start(mounted, seed, minutes * 60)
        operations = requests = 0
        while any(worker.poll() is None for worker in workers):
            time.sleep(SAMPLE_SECONDS)
            watch.sample()
            requests += len(proxy.log)
            proxy.forget()
        for number, worker in enumerate(workers):
            output = worker.communicate()[0]
            if worker.returncode != 0:
                complaints.append(f"process {number} failed with exit code {worker.returncode}")
                continue
            result = json.loads(output)
            operations += result["operations"]
            expected |= {f"dir-{number}/{one}": sum_ for one, sum_ in result["files"].items()}
        proxy.clear()
        if mounted.umount() != 0:
            complaints.append("something could not be uploaded")
        found = in_bucket(server, bucket)
        wrong = sorted(key for key, sum_ in expected.items() if found.get(key) != sum_)
        complaints += [f"{key} is wrong in the bucket" for key in wrong]
        uploads = server.client().list_multipart_uploads(Bucket=bucket.name).get("Uploads", ())
        complaints += [f"an upload of {one['Key']} was left behind" for one in uploads]
        complaints += watch.complaints()
        if complaints:
            print(mounted.log[-20_000:], file=sys.stderr)
    memory = f"{min(watch.memory) >> 20} to {max(watch.memory) >> 20} MiB"
    descriptors = f"{min(watch.descriptors)} to {max(watch.descriptors)} descriptors"
    print(f"{operations} operations, {requests} requests, {len(expected)} files in the end")
    print(f"the daemon had {memory} and {descriptors}")
    return complaints


def chosen(options: argparse.Namespace) -> list[str]:
    """Run what was asked for; returns what was wrong."""
    with tempfile.TemporaryDirectory(prefix="s3mount-soak-") as name:
        if options.crashes is not None:
            return crash_daemon(Path(name), options.crashes, options.seed)
        if options.large:
            return check_all(Path(name))
        if options.server_crashes is not None:
            count = options.server_crashes
            return crash_server(Path(name), options.server, count, options.seed)
    return soak(min(options.minutes, MAX_MINUTES), options.seed)


def main(arguments: Sequence[str]) -> int:
    """Run the soak, or one of its processes."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=MAX_MINUTES, help="how long [20]")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random [0]")
    parser.add_argument("--crashes", type=int, help="of the daemon, instead of the mixed load")
    parser.add_argument("--server-crashes", type=int, help="of the store, instead of that load")
    parser.add_argument("--large", action="store_true", help="checks 36, 40 and 41 instead")
    parser.add_argument("--server", default="weed", help="the store that crashes [weed]")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work is not None:
        work(options.work, options.seed, options.minutes * 60)
        return 0
    complaints = chosen(options)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
