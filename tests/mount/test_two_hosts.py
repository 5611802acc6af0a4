"""Random operations on two mounts of one bucket, judged by the rules that are documented."""

import os
import time
from pathlib import Path

import pytest

from tests.conftest import IN_CI
from tests.mount.conftest import Shared
from tests.mount.two_hosts import SLACK, Staleness, TwoHosts

STEPS = 600 if IN_CI else 300
COMPARE_EVERY = 100
RECENT = 1.0  # Seconds for which `open` believes what it has just asked for.
OWN = 4.0  # Seconds around our own write in which another's chmod may be taken for it.
SHORT = 0.4  # Seconds: a time to live that can be waited for.
LONG = 3600.0  # Seconds: nothing is seen within a test but by `open`, or when it is asked for.
# Changes in part that the other host was faster with.
CONFLICTS = r"could not be saved|pre-?conditions|NoSuchKey|changed in the store"


def truth_of(shared: Shared):
    """``truth(name)``: the bytes of the object itself, None if there is none."""

    def truth(name: str) -> bytes | None:
        try:
            return shared.s3.get_object(Bucket=shared.bucket.name, Key=name)["Body"].read()
        except shared.s3.exceptions.NoSuchKey:
            return None

    return truth


def wait(_: Path) -> None:
    """Wait until nothing is believed any more that was known before."""
    time.sleep(SHORT + SLACK)


def refresh(root: Path) -> None:
    """Have a mount ask for everything anew."""
    os.setxattr(root, "user.s3mount.refresh", b"")
    time.sleep(0.1)  # The kernel hears of directories that are gone right after the call.


def drive(hosts: TwoHosts, steps: int) -> None:
    """Do that many random things, and compare now and then."""
    try:
        for number in range(1, steps + 1):
            hosts.step()
            if number % COMPARE_EVERY == 0:
                hosts.compare()
        hosts.compare()
    finally:
        hosts.close_all()
        time.sleep(1)  # What a refused change leaves of attributes is given up by then.


@pytest.mark.parametrize(
    ("server", "seed"), [("weed", 1), ("weed", 2), ("minio", 2), ("rustfs", 1)]
)
def test_two_hosts_that_believe_long_what_they_know(sharing, server: str, seed: int):
    times = ("--metadata-ttl", f"{LONG}s", "--negative-ttl", f"{SHORT}s")
    with sharing(*times, mounts=2, server=server) as shared:
        shared.mounter.expect_log(CONFLICTS, optional=True)
        roots = [mount.path for mount in shared.mounts]
        staleness = Staleness(names=LONG, absence=SHORT, opened=RECENT, attributes=0.0)
        drive(TwoHosts(roots, truth_of(shared), refresh, staleness, seed), STEPS)


def test_two_hosts_that_ask_often(sharing):
    times = ("--metadata-ttl", f"{SHORT}s", "--negative-ttl", f"{SHORT}s")
    with sharing(*times, mounts=2) as shared:
        shared.mounter.expect_log(CONFLICTS, optional=True)
        roots = [mount.path for mount in shared.mounts]
        staleness = Staleness(names=SHORT, absence=SHORT, opened=SHORT, attributes=OWN)
        drive(TwoHosts(roots, truth_of(shared), wait, staleness, 3), STEPS // 4)
