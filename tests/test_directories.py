"""Who reads a directory sees each name that is there all the time once, whatever others do."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from s3mount.cache.metadata import Entry
from s3mount.fs import directories, learner
from s3mount.fs.inodes import ROOT
from s3mount.fs.names import long_name
from tests.assembled import MODE, Assembled, Describing, SmallPages, assembled
from tests.servers import Server
from tests.stores import client_for, own_prefix, shared_bucket


class Clock:
    """The time of the cache, which passes when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


async def put(store: SmallPages, names: list[str]) -> list[bytes]:
    """Store objects; their names as a directory shows them."""
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(lambda name=name: store.put(name, [b"1"], headers={}))
    return sorted({name.partition("/")[0].encode() for name in names})


def numbered(count: int) -> list[str]:
    return [f"n{number:04}" for number in range(count)]


@pytest.fixture
async def store(weed: Server) -> AsyncIterator[SmallPages]:
    async with client_for(shared_bucket(weed), prefix=own_prefix()) as client:
        yield SmallPages(client, 10)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def small(
    store: SmallPages, folder: int, tmp_path: Path, clock: Clock
) -> AsyncIterator[Assembled]:
    """One that does not keep directories of more than 20 names."""
    async with assembled(store, tmp_path, folder, max_entries=40, clock=clock) as made:
        yield made


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


# -- readers of one listing --------------------------------------------------------------------


@pytest.mark.parametrize("room", [3, 10, 600])
@pytest.mark.parametrize("read", [0, 1, 9, 10, 25])
async def test_who_is_left_behind_by_another_reader_is_shown_the_rest(
    small: Assembled, room: int, read: int
):
    mixed = [name + ("/f" if number % 3 == 0 else "") for number, name in enumerate(numbered(150))]
    expected = await put(small.store, mixed)
    slow, fast = (small.directories.opendir(ROOT) for _ in range(2))
    names, following = await small.read(slow, 0, read)
    assert sorted(await small.read_rest(fast, room=room)) == expected
    names += await small.read_rest(slow, following, room)
    assert sorted(names) == expected


@pytest.mark.parametrize("room", [4, 600])
async def test_who_removes_what_it_reads_misses_nothing_when_it_is_left_behind(
    small: Assembled, room: int
):
    expected = await put(small.store, numbered(100))
    remover, fast = (small.directories.opendir(ROOT) for _ in range(2))
    names, following = await small.read(remover, 0, 17)
    for name in names:
        await small.store.remove(name.decode())
    await put(small.store, ["n0003new"])
    assert len(await small.read_rest(fast)) == 100
    asked = small.store.asked
    assert names + await small.read_rest(remover, following, room) == expected
    assert small.store.asked - asked <= 10, "it goes on where it was, not from the start"


async def test_readers_share_a_listing_that_is_under_way(small: Assembled):
    expected = await put(small.store, numbered(60))
    readers = [small.directories.opendir(ROOT) for _ in range(5)]
    found: dict[int, list[bytes]] = {}

    async def read(reader: int) -> None:
        found[reader] = await small.read_rest(reader)

    async with trio.open_nursery() as nursery:
        for reader in readers:
            nursery.start_soon(read, reader)
    assert [found[reader] for reader in readers] == [expected] * 5
    assert small.store.asked == 6


async def test_a_listing_that_nobody_reads_any_more_is_not_given_to_the_next_reader(
    small: Assembled,
):
    await put(small.store, numbered(100))
    reader = small.directories.opendir(ROOT)
    before = len(small.nursery.child_tasks)
    assert len((await small.read(reader, 0, 5))[0]) == 5
    small.directories.releasedir(reader)
    with trio.fail_after(5):
        while len(small.nursery.child_tasks) > before:
            await wait_all_tasks_blocked(0.01)
    await put(small.store, ["n0001new"])
    assert b"n0001new" in await small.read_rest(small.directories.opendir(ROOT))


async def test_a_directory_that_names_are_looked_up_in_is_not_listed_on(small: Assembled):
    await put(small.store, numbered(100))
    for name in ("lost", "missing"):
        assert await small.fs.namespace.find("", name) is None
    await put(small.store, ["n0001new"])
    assert b"n0001new" in await small.read_rest(small.directories.opendir(ROOT))


async def test_a_listing_that_is_older_than_names_may_be_is_not_shared(
    small: Assembled, clock: Clock
):
    await put(small.store, numbered(100))
    sleeper = small.directories.opendir(ROOT)
    await small.read(sleeper, 0, 5)
    await put(small.store, ["n0001new"])
    clock.now += 61
    assert b"n0001new" in await small.read_rest(small.directories.opendir(ROOT))


@pytest.mark.parametrize("how", ["create", "rename", "mkdir"])
async def test_who_makes_a_name_sees_it_though_a_listing_is_under_way(small: Assembled, how: str):
    await put(small.store, numbered(100))
    other = small.directories.opendir(ROOT)
    await small.read(other, 0, 5)
    if how == "mkdir":
        await small.fs.mkdir(ROOT, b"n0001new", MODE)
    else:
        await small.close(await small.create(b"n0001new" if how == "create" else b"tmp"))
    if how == "rename":
        await small.rename(b"tmp", b"n0001new")
    assert b"n0001new" in await small.read_rest(small.directories.opendir(ROOT))


async def test_a_long_name_is_found_in_a_directory_that_others_read(
    moto: Server, folder: int, tmp_path: Path
):
    segment = "x" * 300  # SeaweedFS takes none of these.
    async with client_for(shared_bucket(moto), prefix=own_prefix()) as client:
        store = SmallPages(client, 10)
        await put(store, [*numbered(80), segment])
        async with assembled(store, tmp_path, folder, max_entries=40) as small:
            slow = small.directories.opendir(ROOT)
            names, following = await small.read(slow, 0, 5)
            found = await small.fs.namespace.place_of("", long_name(segment))
            assert found == (long_name(segment), segment)
            names += await small.read_rest(slow, following)
            assert names == [*(name.encode() for name in numbered(80)), long_name(segment)]


# -- readers who look at all names -------------------------------------------------------------


@pytest.fixture
async def telling(
    weed: Server, folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Assembled]:
    """One whose store tells metadata, with bounds for directories of 200 names."""
    monkeypatch.setattr(learner, "MAX_AHEAD", 60)
    monkeypatch.setattr(learner, "NEAR", 30)
    monkeypatch.setattr(directories, "LEARNT_CHUNK", 20)
    async with (
        client_for(shared_bucket(weed), prefix=own_prefix()) as client,
        assembled(Describing(client, 10), tmp_path, folder) as made,
    ):
        yield made


async def walk_from(made: Assembled, known: int) -> list[bytes]:
    """What ``ls -l`` shows where it was told of so many names before."""
    names = numbered(200)
    await put(made.store, names)
    await made.read_rest(made.directories.opendir(ROOT), room=600)
    async with trio.open_nursery() as nursery:
        for name in names[:known]:
            nursery.start_soon(lambda name=name: made.fs.namespace.find("", name))
    made.store.looked = 0
    reader = made.directories.opendir(ROOT)
    for name in names[:2]:
        made.fs.learner.looked_up("", name)
    with trio.fail_after(10):
        return await made.read_rest(reader, room=20)


@pytest.mark.parametrize("known", [0, 20, 100, 180])
async def test_who_looks_at_all_names_does_not_wait_where_the_first_ones_are_known(
    telling: Assembled, known: int
):
    assert await walk_from(telling, known) == [name.encode() for name in numbered(200)]
    unknown = [
        name
        for name, entry in telling.fs.cache.names("").items()
        if isinstance(entry, Entry) and entry.attributes is None
    ]
    assert unknown == []


async def test_a_listing_that_tells_metadata_spares_the_single_questions(telling: Assembled):
    await walk_from(telling, 0)
    assert telling.store.looked == 0
