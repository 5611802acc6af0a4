"""A tree is moved as a whole or not at all, also when whoever asked for it is killed."""

from contextlib import closing
from pathlib import Path

import pytest
import trio

from s3mount.fs.tree import TreeMover
from s3mount.s3.checksum import function
from s3mount.write.journal import Fields, Journal, read_file, read_log
from s3mount.write.logfile import LOG
from s3mount.write.records import DELETING
from tests.servers import Server
from tests.stores import client_for, own_prefix, shared_bucket

CRC = function("crc64nvme")


class Killing(Journal):
    """A journal that has a scope cancelled as soon as it hears that the old tree goes.

    What it commits is no measure: it does so for itself, too, where a disk is slow.
    """

    def __init__(self, directory: int, scope: trio.CancelScope) -> None:
        super().__init__(directory, CRC)
        self._scope = scope

    def put(self, name: str, fields: Fields, blob: bytes = b"") -> None:
        super().put(name, fields, blob)
        if fields["phase"] == DELETING:
            self._scope.cancel()


@pytest.mark.parametrize("killed", [False, True])
async def test_who_is_killed_when_all_is_copied_has_moved_the_tree(
    weed: Server, folder: int, tmp_path: Path, killed: bool
):
    scope = trio.CancelScope()
    copied = None
    with closing(Killing(folder, scope) if killed else Journal(folder, CRC)) as journal:
        journal.create()
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
