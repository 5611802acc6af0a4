"""What is too large for every run of the tests: checks 36, 40 and 41, by ``scripts/soak --large``.

An object of 6 GiB, 10,000 files in a directory, and a million keys under one prefix; those come
from a server that makes them up, because none fills so fast.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from urllib.parse import parse_qs, urlsplit

from s3mount.demo.weed import LOOPBACK, Credentials
from tests.faultproxy import FaultProxy
from tests.mounts import Bucket, Mount, Mounter
from tests.servers import Server, make_server

MIB, GIB = 1 << 20, 1 << 30
LARGE = 6 * GIB
PART = 256 * MIB
FILES = 10_000
KEYS = 1_000_000
PAGE = 1000
FIRST_NAME = 2.0  # Seconds.
MORE_MEMORY = 500 * MIB


@contextmanager
def stage(directory: Path, server_name: str) -> Iterator[tuple[Server, Bucket, Mounter]]:
    """A server, a bucket, and whoever mounts it."""
    directory.mkdir()
    server = make_server(server_name, directory, Credentials.random())
    assert server is not None, f"{server_name} is not installed"
    with server:
        bucket = Bucket("large", server.url, server.credentials)
        server.client().create_bucket(Bucket=bucket.name)
        mounter = Mounter(directory)
        try:
            yield server, bucket, mounter
        finally:
            mounter.finish()


def memory_of(mounted: Mount) -> int:
    """The resident memory of a daemon in bytes."""
    status = Path(f"/proc/{mounted.process_id}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) << 10


# -- 36 ----------------------------------------------------------------------------------------


def check_36(directory: Path) -> list[str]:
    """An object of 6 GiB: its size, random reads, renaming and chmod."""
    wrong = []
    with stage(directory, "weed") as (server, bucket, mounter):
        body = put_large(server, bucket)
        mounted = mounter(bucket)
        path = mounted.path / "large"
        if path.stat().st_size != LARGE:
            wrong.append(f"its size is {path.stat().st_size}")
        for step in ("as it is", "renamed", "with another mode"):
            began = time.monotonic()
            if step == "renamed":
                path = path.rename(mounted.path / "renamed")
            elif step != "as it is":
                path.chmod(0o640)
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            took = time.monotonic() - began
            if not reads_right(path, body):
                wrong.append(f"{step}: it reads wrong")
            print(f"check 36, {step}: {took:.1f} s, {memory_of(mounted) >> 20} MiB")
        if mounted.umount() != 0:
            wrong.append("the mount ended badly")
        head = server.client().head_object(Bucket=bucket.name, Key="renamed")
        if head["ContentLength"] != LARGE or head["Metadata"]["mode"] != str(0o100640):
            wrong.append(f"the store has {head['ContentLength']} bytes, {head['Metadata']}")
    return wrong


def put_large(server: Server, bucket: Bucket) -> bytes:
    """Make the object of equal parts, which the server copies; return one part."""
    body = Random(0).randbytes(MIB) * (PART // MIB)
    client, where = server.client(), {"Bucket": bucket.name, "Key": "large"}
    client.put_object(Bucket=bucket.name, Key="part", Body=body)
    upload = {**where, "UploadId": client.create_multipart_upload(**where)["UploadId"]}
    parts = []
    for number in range(1, LARGE // PART + 1):
        source = {"Bucket": bucket.name, "Key": "part"}
        made = client.upload_part_copy(**upload, PartNumber=number, CopySource=source)
        parts.append({"PartNumber": number, "ETag": made["CopyPartResult"]["ETag"]})
    client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    return body


def reads_right(path: Path, body: bytes) -> bool:
    """Whether some places, the borders of parts and 4 GiB among them, are what they should be."""
    random = Random(1)
    places = [0, PART - 100, 4 * GIB - 50, LARGE - 5000]
    places += [random.randrange(LARGE - 5000) for _ in range(40)]
    with path.open("rb", buffering=0) as file:
        for place in places:
            start = place % MIB
            if os.pread(file.fileno(), 4000, place) != (body[: 2 * MIB])[start : start + 4000]:
                return False
    return True


# -- 40 ----------------------------------------------------------------------------------------


def check_40(directory: Path) -> list[str]:
    """10,000 files in one directory: the requests of ls, and removing while reading."""
    wrong = []
    with (
        stage(directory, "weed") as (server, bucket, mounter),
        FaultProxy(server.url) as proxy,
        ThreadPoolExecutor(8) as pool,
    ):
        client = server.client()
        keys = [f"many/file-{number:05d}" for number in range(FILES)]
        list(pool.map(lambda key: client.put_object(Bucket=bucket.name, Key=key, Body=b"x"), keys))
        mounted = mounter(bucket, url=proxy.url)
        time.sleep(3)  # Until all is quiet after the start.
        proxy.forget()
        names = run("ls", "-f", mounted.path / "many").split()
        requests = len(proxy.log)
        if sorted(names) != sorted([".", "..", *(key[5:] for key in keys)]):
            wrong.append(f"ls shows {len(names)} names, {len(set(names))} different ones")
        if requests > 10 + 2 * FILES // PAGE:
            wrong.append(f"ls takes {requests} requests")
        found = run("find", mounted.path / "many", "-type", "f").split()
        if len(set(found)) != FILES or len(found) != FILES:
            wrong.append(f"find shows {len(found)} names")
        for number, entry in enumerate(os.scandir(mounted.path / "many")):
            if number % 2:
                Path(entry.path).unlink()
        left = run("ls", "-f", mounted.path / "many").split()
        if len(left) != FILES // 2 + 2:
            wrong.append(f"{len(left)} names are left of {FILES}, for half of them")
        run("rm", "-r", mounted.path / "many")
        if client.list_objects_v2(Bucket=bucket.name).get("Contents"):
            wrong.append("rm -r leaves something")
        print(f"check 40: ls -f of {FILES} files takes {requests} requests")
        mounted.umount()
    return wrong


def run(*words: object) -> str:
    """Run a program and return what it says."""
    command = [str(word) for word in words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=900).stdout


# -- 41 ----------------------------------------------------------------------------------------


class Listing(BaseHTTPRequestHandler):
    """A store with a million keys under ``big/``, and ``other``, that can only be read."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """List, or say that there is nothing."""
        address = urlsplit(self.path)
        query = parse_qs(address.query, keep_blank_values=True)
        if address.path.strip("/") == "large" and "list-type" in query:
            self._answer(200, page(query))
        else:
            self._answer(404, "<Error><Code>NoSuchKey</Code></Error>")

    def do_HEAD(self) -> None:
        """Tell of the bucket, and of one object."""
        found = self.path.strip("/") == "large" or self.path.endswith("/other")
        self._answer(200 if found else 404, "")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        self.send_header("ETag", '"00000000000000000000000000000001"')
        self.send_header("x-amz-request-id", "1")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def page(query: dict[str, list[str]]) -> str:
    """One page of a listing."""
    prefix = query.get("prefix", [""])[0]
    limit = int(query.get("max-keys", [str(PAGE)])[0])
    start = int(query.get("continuation-token", ["0"])[0])
    keys: list[str] = []
    prefixes, following = "", ""
    if prefix == "":
        keys, prefixes = ["other"], "<CommonPrefixes><Prefix>big/</Prefix></CommonPrefixes>"
    elif prefix == "big/":
        stop = min(start + limit, KEYS)
        keys = [f"big/key-{number:07d}" for number in range(start, stop)]
        following = str(stop) if stop < KEYS else ""
    contents = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2015-10-21T07:28:00.000Z</LastModified>"
        f"<ETag>&quot;00000000000000000000000000000001&quot;</ETag><Size>0</Size>"
        f"<StorageClass>STANDARD</StorageClass></Contents>"
        for key in keys
    )
    truncated = "true" if following else "false"
    token = f"<NextContinuationToken>{following}</NextContinuationToken>" if following else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>large</Name>'
        f"<Prefix>{prefix}</Prefix><IsTruncated>{truncated}</IsTruncated>{token}"
        f"{contents}{prefixes}</ListBucketResult>"
    )


def check_41(directory: Path) -> list[str]:
    """A million keys: the first name, memory, and what else is done meanwhile."""
    wrong = []
    directory.mkdir()
    server = ThreadingHTTPServer((LOOPBACK, 0), Listing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    bucket = Bucket("large", f"http://{LOOPBACK}:{server.server_port}", Credentials.random())
    mounter = Mounter(directory)
    mounter.expect_log(".", optional=True)  # It is a poor store.
    try:
        mounted = mounter(bucket, "-o", "ro")
        before = memory_of(mounted)
        began = time.monotonic()
        names = os.scandir(mounted.path / "big")
        next(names)
        first = time.monotonic() - began
        names.close()
        lister = subprocess.Popen(
            [sys.executable, "-c", COUNT, str(mounted.path / "big")],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        most, slowest = before, 0.0
        while lister.poll() is None:
            asked = time.monotonic()
            (mounted.path / "other").stat()
            slowest = max(slowest, time.monotonic() - asked)
            most = max(most, memory_of(mounted))
            time.sleep(0.2)
        counted = lister.communicate()[0].split()
        if counted != [str(KEYS), str(KEYS)]:
            wrong.append(f"{counted} names, and different ones")
        wrong += limits(first, most - before, slowest)
        wrong += interrupted(mounted.path / "big")
        took = time.monotonic() - began
        print(
            f"check 41: the first name after {first:.2f} s, all after {took:.0f} s, "
            f"{(most - before) >> 20} MiB more, others waited {slowest:.2f} s at most"
        )
    finally:
        mounter.finish()
        server.shutdown()
        server.server_close()
    return wrong


COUNT = "import os, sys; n = os.listdir(sys.argv[1]); print(len(n), len(set(n)))"


def limits(first: float, memory: int, slowest: float) -> list[str]:
    """What took too long, or too much."""
    wrong = []
    if first > FIRST_NAME:
        wrong.append(f"the first name came after {first:.1f} s")
    if memory > MORE_MEMORY:
        wrong.append(f"{memory >> 20} MiB more than before")
    if slowest > 5:
        wrong.append(f"a stat of another file took {slowest:.1f} s")
    return wrong


def interrupted(path: Path) -> list[str]:
    """Whether a listing that is under way can be ended."""
    lister = subprocess.Popen(["ls", "-f", str(path)], stdout=subprocess.DEVNULL)
    time.sleep(0.5)
    lister.terminate()
    try:
        lister.wait(5)
    except subprocess.TimeoutExpired:
        lister.kill()
        return ["ls cannot be interrupted"]
    return []


def check_all(directory: Path) -> list[str]:
    """All of them, one after the other; returns what was wrong."""
    wrong = []
    for number, check in ((41, check_41), (40, check_40), (36, check_36)):
        where = directory / f"check{number}"
        wrong += [f"check {number}: {one}" for one in check(where)]
        shutil.rmtree(where, ignore_errors=True)
    return wrong
