"""A tree is moved as a whole or not at all, also when whoever asked for it is killed."""

import os
from pathlib import Path

import pytest
import trio

from s3mount.fs.tree import TreeMover
from s3mount.s3.checksum import function
from s3mount.write.journal import Journal, read_file, read_log
from s3mount.write.logfile import LOG
from s3mount.write.records import DELETING
from tests.servers import Server
from tests.stores import client_for, own_prefix, shared_bucket

CRC = function("crc64nvme")


class Killing(Journal):
    """A journal that has a scope cancelled while it writes down its second promise."""

    def __init__(self, directory: int, scope: trio.CancelScope) -> None:
        super().__init__(directory, CRC)
        self._scope = scope
        self._promises = 0

    async def commit(self) -> None:
        self._promises += 1
        if self._promises == 2:
            self._scope.cancel()
        await super().commit()


@pytest.mark.parametrize("killed", [False, True])
async def test_who_is_killed_when_all_is_copied_has_moved_the_tree(
    weed: Server, tmp_path: Path, killed: bool
):
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    scope = trio.CancelScope()
    journal = Killing(folder, scope) if killed else Journal(folder, CRC)
    journal.create()
    copied = None
    async with (
        client_for(shared_bucket(weed), prefix=own_prefix()) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(journal.run)
        await client.put("old/file", [b"content"], headers={})
        mover = TreeMover(client, journal, nursery)
        with scope:
            copied = await mover.copy("old/", "new/", replacing=False)
        assert copied is not None
        assert set(copied.etags) == {"new/file"}
        (record,) = read_log(read_file(tmp_path / LOG), CRC).records.values()
        assert record.fields["phase"] == DELETING
        await mover.remove(copied)
        assert journal.empty
        page = await client.list_page("", token=None, flat=True)
        assert [found.key for found in page.objects] == ["new/file"]
        nursery.cancel_scope.cancel()
    journal.close()
    os.close(folder)
