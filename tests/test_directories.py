"""Who reads a directory sees each name that is there all the time once, whatever others do."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from s3mount.fs.inodes import ROOT
from tests.assembled import MODE, Assembled, SmallPages, assembled
from tests.servers import Server
from tests.stores import client_for, own_prefix, shared_bucket


@pytest.fixture
async def store(weed: Server) -> AsyncIterator[SmallPages]:
    async with client_for(shared_bucket(weed), prefix=own_prefix()) as client:
        yield SmallPages(client, 10)


@pytest.fixture
async def made(store: SmallPages, folder: int, tmp_path: Path) -> AsyncIterator[Assembled]:
    async with assembled(store, tmp_path, folder) as made:
        yield made


async def test_a_name_that_an_unsaved_file_is_renamed_over_stays_in_the_directory(made: Assembled):
    await made.store.put("x", [b"old"], headers={})
    writing = await made.create(b".x.tmp")
    reader = made.directories.opendir(ROOT)
    names, following = await made.read(reader, 0, 1)
    assert names == [b".x.tmp"]
    await made.close(writing)
    await made.rename(b".x.tmp", b"x")
    assert await made.read_rest(reader, following) == [b"x"]


async def test_a_name_that_was_unsaved_itself_stays_when_a_file_is_renamed_over_it(
    made: Assembled,
):
    temporary, replaced = await made.create(b".x.tmp"), await made.create(b"x")
    reader = made.directories.opendir(ROOT)
    names, following = await made.read(reader, 0, 1)
    assert names == [b".x.tmp"]
    await made.close(temporary)
    await made.rename(b".x.tmp", b"x")
    assert await made.read_rest(reader, following) == [b"x"]
    await made.close(replaced)


async def test_an_unsaved_file_that_is_moved_away_hides_no_name(made: Assembled):
    await made.store.put("x", [b"here"], headers={})
    elsewhere = await made.fs.mkdir(ROOT, b"elsewhere", MODE)
    elsewhere.inode.lookups += 1
    writing = await made.create(b"tmp")
    reader = made.directories.opendir(ROOT)
    names, following = await made.read(reader, 0, 1)
    assert names == [b"tmp"]
    await made.close(writing)
    await made.rename(b"tmp", b"x", elsewhere.inode.number)
    assert await made.read_rest(reader, following) == [b"elsewhere", b"x"]


@pytest.mark.parametrize("room", [1, 2, 100])
async def test_no_name_is_shown_twice_when_unsaved_files_change_places(
    made: Assembled, room: int
):  # fmt: skip
    writing = [await made.create(name) for name in (b"a", b"b", b"c")]
    reader = made.directories.opendir(ROOT)
    names, following = await made.read(reader, 0, room)
    assert names == [b"a", b"b", b"c"][:room]
    await made.close(writing.pop())
    await made.rename(b"c", b"a")
    names += await made.read_rest(reader, following, room)
    assert [name for name in names if name != b"c"] == [b"a", b"b"]
    for handle in writing:
        await made.close(handle)


async def test_what_the_kernel_had_no_room_for_is_shown_by_its_new_name(made: Assembled):
    await made.store.put("z", [b""], headers={})
    first, second = await made.create(b"a"), await made.create(b"b")
    reader = made.directories.opendir(ROOT)
    names, following = await made.read(reader, 0, 1)  # That has seen "b", too.
    assert names == [b"a"]
    await made.close(second)
    await made.rename(b"b", b"z")
    assert await made.read_rest(reader, following) == [b"z"]
    await made.close(first)
