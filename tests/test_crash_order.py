"""What the disk of the journal has at the moment in which the store is asked to delete something.

A crash then must leave a file under one name or another, and nobody else's file gone for it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from s3mount.errors import Denied
from s3mount.fs import writeback
from s3mount.fs.inodes import ROOT
from s3mount.s3.store import ALWAYS, ObjectInfo, Precondition, Stored
from s3mount.write.journal import read_file, read_log
from s3mount.write.logfile import LOG
from s3mount.write.records import FILE, KIND, REMOVAL
from tests.assembled import CRC, Assembled, SmallPages, assembled
from tests.servers import Server
from tests.stores import client_for, content_of, own_prefix, shared_bucket

Seen = Mapping[str, tuple[str, object]]


class Witness(SmallPages):
    """A store that looks at the log in *directory* before it copies or deletes something.

    `seen` is what a crash would leave there, for each request: kinds of records by their keys,
    and the ETag under whose condition a file is to be uploaded.
    """

    def __init__(self, client: Any, directory: Path) -> None:
        super().__init__(client, 1000)
        self._directory = directory
        self.refusing = False
        self.meanwhile: Callable[[], None] | None = None
        self.seen: list[tuple[str, str, Seen]] = []

    def left(self) -> Seen:
        """What a crash would leave now."""
        records = read_log(read_file(self._directory / LOG), CRC).records.values()
        known = [record.fields for record in records]
        return {
            str(fields["key"]): (str(fields[KIND]), fields["etag"] or fields.get("absent"))
            for fields in known
        }

    async def put(self, key: str, *body: Any, **how: Any) -> Stored:
        if "condition" in how:  # Those of the file system have one.
            self.seen.append(("put", key, self.left()))
        return await self._client.put(key, *body, **how)

    async def copy(self, source: str, target: str, **how: Any) -> Stored:
        self.seen.append(("copy", target, self.left()))
        self._refuse()
        return await self._client.copy(source, target, **how)

    async def delete(self, key: str, *, condition: Precondition) -> None:
        await self._gone(key, self._client.delete, condition)

    async def remove(self, key: str, *, condition: Precondition) -> None:
        await self._gone(key, self._client.remove, condition)

    async def _gone(
        self, key: str, ask: Callable[..., Awaitable[None]], condition: Precondition
    ) -> None:
        self.seen.append(("delete", key, self.left()))
        if self.meanwhile is not None:
            self.meanwhile()
            await trio.sleep(3 * writeback.LOOK)
        self._refuse()
        await ask(key, condition=condition)

    def _refuse(self) -> None:
        if self.refusing:
            raise Denied("it is refused")


@pytest.fixture
async def store(weed: Server, tmp_path: Path) -> AsyncIterator[Witness]:
    async with client_for(shared_bucket(weed), prefix=own_prefix()) as client:
        yield Witness(client, tmp_path)


@pytest.fixture
async def made(
    store: Witness, folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Assembled]:
    """One that uploads nothing by itself, for as long as a test takes."""
    for name in ("MIN_AGE", "MAX_AGE"):
        monkeypatch.setattr(writeback, name, 3600.0)
    async with assembled(store, tmp_path, folder, writeback=True) as made:
        yield made


async def write(made: Assembled, name: bytes, body: bytes) -> None:
    """Write a file anew, and close it: the journal has it."""
    found = await made.fs.lookup(ROOT, name)
    found.inode.lookups += 1
    handle, _ = await made.fs.open(found.inode.number, 2)
    await made.fs.handles.write(handle, 0, body)
    await made.close(handle)


async def changed(made: Assembled, name: str) -> ObjectInfo:
    """A file that is in the store, and has been changed since: that is in the journal alone."""
    await made.store.put(name, [b"before"], headers={})
    info = await made.store.head(name)
    await write(made, name.encode(), b"after")
    assert made.store.left() == {name: (FILE, info.etag)}
    return info


async def test_the_old_name_of_a_changed_file_is_forgotten_before_its_object_is_deleted(
    made: Assembled, store: Witness
):
    info = await changed(made, "old")
    await made.rename(b"old", b"new")
    assert store.seen == [
        ("put", "new", {"old": (FILE, info.etag)}),
        ("delete", "old", {"old": (REMOVAL, info.etag)}),
    ]
    assert store.left() == {}


async def test_what_is_uploaded_past_the_journal_is_no_conflict_with_what_it_has(
    made: Assembled, store: Witness
):
    """As by a mount without writeback, of what one with writeback has left."""
    await changed(made, "file")
    (file,) = made.fs.files.values()
    await file.write(0, b"later")
    await made.fs.open_files.save(file)
    assert store.seen == [("put", "file", {"file": (FILE, False)})]


async def test_an_upload_that_leaves_no_old_name_does_not_wait_for_the_disk(
    made: Assembled, store: Witness
):
    info = await changed(made, "file")
    (file,) = made.fs.files.values()
    await made.fs.open_files.save(file)
    assert store.seen == [("put", "file", {"file": (FILE, info.etag)})]
    assert store.left() == {"file": (FILE, info.etag)}


async def test_what_is_replaced_is_forgotten_before_the_old_name_goes(
    made: Assembled, store: Witness
):
    """Else its bytes would be put over what has replaced it, which is nowhere else by then."""
    await changed(made, "new")
    await store.put("old", [b"moved"], headers={})
    await made.rename(b"old", b"new")
    assert store.seen == [
        # The copy is no conflict with the change, if only one of the two is left.
        ("copy", "new", {"new": (FILE, False)}),
        ("delete", "old", {}),
    ]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("renamed", [True, False])
async def test_what_the_store_has_is_what_a_file_was_renamed_over(
    made: Assembled, store: Witness, told: bool, renamed: bool
):
    """A file that was never stored itself: only the journal has it, under its new name."""
    await store.put("name", [b"before"], headers={})
    info = await store.head("name")
    if told:
        await made.fs.lookup(ROOT, b"name")
    await made.close(await made.create(b"other"))
    await made.rename(b"other", b"name")
    assert (await made.fs.lookup(ROOT, b"name")).inode.shown == ""
    if not told:
        for file in made.fs.files.values():
            file.expected = ALWAYS  # As where another daemon has left it.
    if renamed:
        await made.rename(b"name", b"new")
    else:
        await made.fs.unlink(ROOT, b"name")
    assert store.seen[-1] == ("delete", "name", {"name": (REMOVAL, info.etag)})


async def test_what_is_not_replaced_after_all_keeps_its_condition(made: Assembled, store: Witness):
    info = await changed(made, "new")
    await store.put("old", [b"moved"], headers={})
    store.refusing = True
    with pytest.raises(Denied):
        await made.rename(b"old", b"new")
    await made.close(await made.create(b"other"))  # Has the journal on the disk.
    assert store.left()["new"] == (FILE, info.etag)


async def test_a_changed_file_is_forgotten_before_its_object_is_deleted(
    made: Assembled, store: Witness
):
    info = await changed(made, "file")
    await made.fs.unlink(ROOT, b"file")
    assert store.seen == [("delete", "file", {"file": (REMOVAL, info.etag)})]


async def test_a_changed_file_that_cannot_be_removed_is_in_the_journal_again(
    made: Assembled, store: Witness
):
    info = await changed(made, "file")
    store.refusing = True
    with pytest.raises(Denied):
        await made.fs.unlink(ROOT, b"file")
    assert store.left() == {"file": (FILE, info.etag)}


async def test_a_changed_file_that_cannot_be_removed_is_uploaded_all_the_same(
    made: Assembled, store: Witness, monkeypatch: pytest.MonkeyPatch
):
    """Also when its turn comes while it is about to be removed."""
    await changed(made, "file")
    store.refusing = True
    store.meanwhile = lambda: monkeypatch.setattr(writeback, "MAX_AGE", 0.0)
    with pytest.raises(Denied):
        await made.fs.unlink(ROOT, b"file")
    for _ in range(400):
        if not made.fs.files:
            break
        await trio.sleep(0.05)
    assert await content_of(store, "file") == b"aftere"  # Written over "before".
