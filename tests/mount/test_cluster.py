"""A store of several machines loses one of them while programs work: nobody hears of it."""

import hashlib
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from s3mount.demo.weed import Credentials
from tests.mount.conftest import keys_of
from tests.mount.test_crash import Worker
from tests.mounts import Bucket, Mounter
from tests.rustfs_cluster import NODES, RustFSCluster
from tests.servers import find_rustfs

BEFORE, WITHOUT, AFTER = 2.0, 4.0, 2.0  # Seconds of work, with all nodes and without one.
OURS = 0  # The node that the mount talks to.


@pytest.fixture
def cluster(tmp_path: Path, credentials: Credentials) -> Iterator[RustFSCluster]:
    program = find_rustfs()
    if program is None:
        pytest.skip("rustfs is not installed")
    directory = tmp_path / "cluster"
    directory.mkdir()
    with RustFSCluster(directory, credentials, program) as cluster:
        yield cluster


class Steady(Worker):
    """Works until it is told to stop; `failure` is the error that a program would have seen."""

    def __init__(self, root: Path, number: int) -> None:
        super().__init__(root, number)
        self.done = threading.Event()
        self.failure: OSError | None = None

    def run(self) -> None:
        try:
            self.root.mkdir()
            while not self.done.is_set():
                self.step()
        except OSError as error:
            self.failure = error


@pytest.mark.slow
@pytest.mark.parametrize("node", [2, OURS], ids=["another", "ours"])
def test_a_node_is_killed_under_load_and_comes_back(
    mount: Mounter, cluster: RustFSCluster, node: int
):
    name = f"test-{secrets.token_hex(6)}"
    cluster.client().create_bucket(Bucket=name)
    bucket = Bucket(name, cluster.url, cluster.credentials)
    one = mount(bucket)
    workers = [Steady(one.path, number) for number in range(3)]
    for worker in workers:
        worker.start()
    time.sleep(BEFORE)
    cluster.kill_node(node)
    before = [worker.count for worker in workers]
    time.sleep(WITHOUT)
    without = sum(worker.count for worker in workers) - sum(before)
    cluster.start_node(node)
    time.sleep(AFTER)
    for worker in workers:
        worker.done.set()
    for worker in workers:
        worker.join(120)
        assert not worker.is_alive()
    assert [worker.failure for worker in workers] == [None] * len(workers)
    if node != OURS:
        assert without > 0
    assert one.umount() == 0
    two = mount(bucket)
    for worker in workers:
        worker.check(two.path)
    assert two.umount() == 0
    check_nodes(cluster, bucket, workers)


def check_nodes(cluster: RustFSCluster, bucket: Bucket, workers: Sequence[Worker]) -> None:
    """Each node has what was acknowledged, and nothing else."""
    kept = {
        f"{worker.root.name}/{file}": digest
        for worker in workers
        for file, digest in worker.acknowledged.items()
    }
    for number in range(NODES):
        for key, digest in kept.items():
            body = cluster.bytes_from(number, bucket.name, key)
            assert hashlib.sha256(body).hexdigest() == digest
    found = keys_of(bucket, cluster.client())
    assert {key for key in found if not key.endswith("/")} == set(kept)
