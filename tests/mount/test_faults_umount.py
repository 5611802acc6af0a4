"""Unmounting while the store is away: at once, and what was written is kept.

The numbers are those of the table in docs/reliability.md.
"""

import time

import pytest

from tests.faultproxy import FaultProxy
from tests.mount.programs import READ, python
from tests.mounts import Bucket, Mounter, is_mounted
from tests.servers import Server


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("how", ["--force", "--lazy"])
def test_check_10_a_mount_goes_away_during_an_outage(
    mount: Mounter, bucket: Bucket, server: Server, mode: str, how: str
):
    mount.expect_log(r"cannot connect|could not be saved|kept|still open|recover", optional=True)
    with FaultProxy(server.url) as proxy:
        mounted = mount(bucket, "-o", f"{mode},timeout=3s", url=proxy.url)
        server.client().put_object(Bucket=bucket.name, Key="file", Body=b"content" * 1000)
        assert (mounted.path / "file").stat().st_size == 7000
        proxy.down()
        with python(READ, mounted.path / "file"):
            time.sleep(1.0)
            done = mount.run("umount", how, str(mounted.path), env=mounted.environment, timeout=40)
            assert done.returncode == 0, done.stdout
            assert not is_mounted(mounted.path)
            proxy.up()
        assert mounted.wait(40) == 0
        assert not list(mounted.path.iterdir())
