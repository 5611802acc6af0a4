"""RustFS goes away and comes back while programs work: nobody hears of it, and nothing is lost.

As one process that is stopped, killed or frozen, and as a store of several that loses one.
"""

import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3mount.demo.weed import Credentials
from tests.conftest import unavailable
from tests.crashsoak import begin_load, crash_server
from tests.mount.conftest import keys_of
from tests.mounts import Bucket, Mounter, why_no_mounts
from tests.rustfs_cluster import NODES, RustFSCluster
from tests.servers import find_rustfs

BEFORE, WITHOUT, AFTER = 2.0, 4.0, 2.0  # Seconds of work, with all nodes and without one.
OURS = 0  # The node that the mount talks to.
INTERRUPTIONS = 2  # Of each way to mount; `scripts/soak --crashes` makes more of them.


@pytest.fixture
def program() -> str:
    found = find_rustfs()
    if found is None:
        pytest.skip("rustfs is not installed")
    return found


@pytest.mark.usefixtures("program")
def test_the_store_is_stopped_and_started_under_load(tmp_path: Path):
    """Durable and with writeback; each call was right, and what it has acknowledged is there.

    Killed it leaves pieces of objects behind, which it lists as directories: that is for the soak.
    """
    if reason := why_no_mounts():
        unavailable(reason)
    assert crash_server(tmp_path, "rustfs", INTERRUPTIONS, 8, ways=("stop", "freeze")) == []


@pytest.fixture
def cluster(tmp_path: Path, credentials: Credentials, program: str) -> Iterator[RustFSCluster]:
    directory = tmp_path / "cluster"
    directory.mkdir()
    with RustFSCluster(directory, credentials, program) as cluster:
        yield cluster


@pytest.mark.slow
@pytest.mark.parametrize("node", [2, OURS], ids=["another", "ours"])
def test_a_node_is_killed_under_load_and_comes_back(
    mount: Mounter, cluster: RustFSCluster, node: int
):
    mount.expect_log(".", optional=True)  # Of requests that are tried again.
    bucket = Bucket(f"test-{secrets.token_hex(6)}", cluster.url, cluster.credentials)
    cluster.client().create_bucket(Bucket=bucket.name)
    one = mount(bucket)
    root = one.path / "load"
    root.mkdir()
    load, told = begin_load(root)
    time.sleep(BEFORE)
    cluster.kill_node(node)
    time.sleep(WITHOUT / 2)
    if node != OURS:
        (one.path / "meanwhile").write_bytes(b"It is there without that node.")
        assert cluster.bytes_from(OURS, bucket.name, "meanwhile").startswith(b"It is there")
    time.sleep(WITHOUT / 2)
    cluster.start_node(node)
    time.sleep(AFTER)
    told.send(root)
    steps, complaints = told.recv()
    assert complaints == []
    assert steps > 0
    assert one.umount() == 0
    two = mount(bucket)
    told.send(two.path / root.name)
    assert told.recv()[1] == []
    load.join()
    check_nodes(cluster, bucket, two.path)
    assert two.umount() == 0


def check_nodes(cluster: RustFSCluster, bucket: Bucket, root: Path) -> None:
    """Each node has what the mount shows, and nothing else."""
    shown = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    found = keys_of(bucket, cluster.client())
    assert {key for key in found if not key.endswith("/")} == set(shown)
    for number in range(NODES):
        for key, path in shown.items():
            assert cluster.bytes_from(number, bucket.name, key) == path.read_bytes(), (number, key)
