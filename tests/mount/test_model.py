"""A mount against a model: random operations, compared with a local directory or with bytes."""

from pathlib import Path
from random import Random

import pytest

from tests.conftest import IN_CI
from tests.mount.programs import run
from tests.mount.trees import digest
from tests.mount.twins import Twins
from tests.mounts import Mount, Mounter
from tests.servers import CHECKOUT

MIB = 1 << 20
STEPS = 3000 if IN_CI else 1500
COMPARE_EVERY = 200
REMOUNT_EVERY = 700
SERVERS = ("weed", "minio", "rustfs")


def remounted(mount: Mounter, mounted: Mount, bucket, twins: Twins, *options: str) -> Mount:
    """Close everything, unmount and mount again in the same place."""
    twins.close_all()
    assert mounted.umount() == 0
    return mount(bucket, *options, name=mounted.path.name)


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("seed", [1, 2])
def test_random_operations_as_on_a_disk(
    server_of, make_bucket, mount: Mounter, tmp_path: Path, server: str, seed: int
):
    bucket = make_bucket(server_of(server))
    mounted = mount(bucket)
    local = tmp_path / "local"
    local.mkdir()
    # SeaweedFS keeps no metadata of markers.
    twins = Twins(mounted.path, local, Random(seed), directory_modes=server != "weed")
    try:
        for number in range(1, STEPS + 1):
            twins.step()
            if number % COMPARE_EVERY == 0:
                twins.compare_trees()
            if number % REMOUNT_EVERY == 0:
                mounted = remounted(mount, mounted, bucket, twins)
                twins.compare_trees()
        twins.close_all()
        twins.compare_trees()
    finally:
        twins.abandon()


@pytest.mark.parametrize(
    ("largest", "operations", "options"),
    [
        pytest.param(256 << 10, 20_000, (), id="one-put"),
        pytest.param(24 * MIB, 1_000, ("--part-size", "5M"), id="parts"),
    ],
)
def test_random_access_to_one_file(
    mount: Mounter, bucket, largest: int, operations: int, options: tuple[str, ...]
):
    mounted = mount(bucket, *options)
    path = mounted.path / "file"
    program = ("python", "-m", "tests.mount.exerciser")
    expected = run(*program, path, largest, operations, largest, cwd=CHECKOUT).strip()
    assert digest(path) == expected
    assert mounted.umount() == 0
    mounted = mount(bucket, *options, name=mounted.path.name)
    assert digest(path) == expected
