"""The attribute index: what is remembered comes back, and nothing that is wrong in it shows."""

import json
import math
import os
import resource
import sqlite3
import stat
import time
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from s3mount.attributes import Attributes
from s3mount.cache import records
from s3mount.cache.index import AttributeIndex
from s3mount.cache.indexfile import IndexFile
from s3mount.cache.metadata import Entry, combine, is_same_version

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND
KEPT = {"content-type": "text/plain", "x-amz-meta-colour": "grün"}
FILE = Entry(
    False, 7, '"e"', NOW, Attributes(0o100640, 1, 2, NOW + 3, NOW + 4), 1.0, False, KEPT
)  # fmt: skip
DIRECTORY = Entry(True, 0, "", NOW, Attributes(0o040750, 1, 2, NOW + 3, NOW + 4), 1.0, True)

kinds = st.sampled_from([stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
times = st.integers(-(1 << 62), 1 << 62)
ids = st.integers(0, 0xFFFFFFFE)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
headers = st.dictionaries(
    st.text("abcdefgh-", min_size=1, max_size=10),
    st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=10),
    max_size=3,
)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@st.composite
def files(draw):
    kind = draw(kinds)
    attributes = Attributes(
        kind | draw(st.integers(0, 0o7777)),
        draw(ids),
        draw(ids),
        draw(times),
        draw(times),
        draw(ids),
        draw(st.none() | texts),
    )
    size = {stat.S_IFREG: draw(st.integers(0, 1 << 50)), stat.S_IFLNK: 5}.get(kind, 0)
    modified = draw(st.integers(1, 1 << 62))
    written = draw(st.none() | st.tuples(times, times))
    etag = f'"{draw(texts)}"'
    kept = draw(headers)
    return Entry(
        False, size, etag, 0 if written else modified, attributes, 1.0, False, kept, written
    )


# -- rows --------------------------------------------------------------------------------------


@given(texts, files())
def test_a_file_comes_back_as_it_was(segment, entry):
    line = records.encode(segment, entry, 0)
    rows = records.parse(f"{line}\n{records.encode('other', FILE, 0)}")
    assert records.decode_file(rows[segment], 1.0) == entry


@given(texts, st.integers(0, 0o7777), ids, times, st.integers(0, 1 << 62), st.booleans())
def test_a_directory_comes_back_as_it_was(segment, mode, uid, mtime_ns, learnt_ns, marker):
    attributes = Attributes(stat.S_IFDIR | mode, uid, 0, mtime_ns, 0)
    entry = Entry(True, 0, "", 0, attributes, 1.0, marker)
    rows = records.parse(records.encode(segment, entry, learnt_ns))
    row = rows[records.row_name(segment, directory=True)]
    assert records.decode_directory(row, 1.0) == (entry, learnt_ns)


@given(st.text(max_size=200))
def test_lines_of_nonsense_are_no_rows(text):
    for row in records.parse(text).values():
        assert len(row) in (10, 14)


@given(st.data(), files())
def test_a_spoilt_field_never_shows_what_cannot_be(data, entry):
    row = json.loads(records.encode("name", entry, 0))
    row[data.draw(st.integers(1, len(row) - 1))] = data.draw(junk)
    found = records.decode_file(row, 1.0)
    if found is not None:
        assert records.encode("name", found, 0) is not None
        assert found.attributes.uid <= 0xFFFFFFFE
        assert not stat.S_ISDIR(found.attributes.mode)
        assert found.size >= 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (1, 0o040755),  # a directory
        (1, 0o1000000),
        (1, "33188"),
        (2, -1),
        (3, 1 << 32),
        (4, 1 << 63),
        (4, 1.5),
        (7, -1),
        (10, None),
        (11, "soon"),
        (12, 5),
        (13, "{"),
        (13, '[["content-type",5]]'),
        (13, '[["content-type","a\\r\\nauthorization: b"]]'),
    ],
)
def test_an_impossible_field_spoils_the_row(field, value):
    row = json.loads(records.encode("name", FILE, 0))
    assert records.decode_file(list(row), 1.0) == FILE
    row[field] = value
    assert records.decode_file(row, 1.0) is None


def test_one_bad_line_spoils_no_other():
    good = records.encode("good", FILE, 0)
    rows = records.parse(f"[1,\n{good}\nnot json\n{{}}\n[]")
    assert list(rows) == ["good"]


def test_what_is_not_certain_is_not_kept():
    assert records.encode("a", FILE._replace(attributes=None), 0) is None
    assert records.encode("a", FILE._replace(kept=None), 0) is None
    assert records.encode("a", FILE._replace(modified_ns=0), 0) is None
    assert records.encode("a", FILE._replace(kept={"x": "y" * 20_000}), 0) is None


# -- which version -----------------------------------------------------------------------------

LISTED = FILE._replace(attributes=None, kept=None, checked=5.0)


def test_a_listing_shows_the_known_version_or_another():
    assert combine(LISTED, FILE, 0.0).attributes == FILE.attributes
    for change in ({"etag": '"f"'}, {"size": 8}, {"modified_ns": NOW + SECOND}):
        assert combine(LISTED._replace(**change), FILE, 0.0).attributes is None


def test_our_own_write_is_recognised_by_when_it_was():
    own = FILE._replace(modified_ns=0, written=(NOW - 5 * SECOND, NOW + 5 * SECOND))
    assert is_same_version(LISTED, own)
    # A chmod by another host is a copy: the same bytes and ETag, at another time.
    assert not is_same_version(LISTED._replace(modified_ns=NOW + 6 * SECOND), own)
    assert not is_same_version(LISTED._replace(modified_ns=NOW - 6 * SECOND), own)
    assert not is_same_version(LISTED, FILE._replace(modified_ns=0))


def test_what_was_learnt_of_a_directory_grows_old():
    listed = Entry(True, 0, "", 0, None, 100.0)
    young = combine(listed, DIRECTORY._replace(checked=60.0), 50.0)
    assert (young.attributes, young.learnt) == (DIRECTORY.attributes, 60.0)
    assert combine(listed, young._replace(checked=100.0), 70.0).attributes is None


# -- the file ----------------------------------------------------------------------------------


@asynccontextmanager
async def opened(directory: Path, *, root: str = "", lasting: bool = False, **bounds: int):
    index = AttributeIndex(
        directory, "http://store\0bucket", root, lasting=lasting, clock=trio.current_time, **bounds
    )
    await index.open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(index.run)
        yield index
        await index.close()
        nursery.cancel_scope.cancel()


async def file_in(index: AttributeIndex, prefix: str, name: str) -> Entry | None:
    rows = await index.page(prefix, [name])
    return index.file(rows, name, FILE.checked)


def database_in(directory: Path) -> Path:
    (path,) = directory.glob("*.sqlite3")
    return path


async def test_what_was_learnt_is_there_after_the_end(tmp_path):
    names = ["a", "b c", "ü", "\U0001f600", "a\nb"]
    async with opened(tmp_path / "index") as index:
        for name in names:
            index.remember("d/", name, FILE._replace(etag=f'"{name}"'))
    async with opened(tmp_path / "index") as index:
        rows = await index.page("d/", names)
        for name in names:
            assert index.file(rows, name, 1.0) == FILE._replace(etag=f'"{name}"')
        assert await index.page("", names) == {}
    path = database_in(tmp_path / "index")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_mounts_of_several_prefixes_share_one_file(tmp_path):
    async with opened(tmp_path, root="p/") as one, opened(tmp_path) as all_of_it:
        one.remember("d/", "a", FILE)
        all_of_it.remember("p/d/", "b", FILE)
        await trio.sleep(1.2)
        assert await file_in(all_of_it, "p/d/", "a") == FILE
        assert await file_in(one, "d/", "b") == FILE
    database_in(tmp_path)


async def test_a_forgotten_name_is_gone(tmp_path):
    async with opened(tmp_path) as index:
        index.remember("d/", "a", FILE)
        index.remember("d/", "b", FILE)
    async with opened(tmp_path) as index:
        index.forget("d/", "a", directory=False)
    async with opened(tmp_path) as index:
        assert await file_in(index, "d/", "a") is None
        assert await file_in(index, "d/", "b") == FILE


async def test_a_tree_moves_and_goes(tmp_path):
    async with opened(tmp_path) as index:
        for prefix in ("old/", "old/x/", "older/", "new/x/"):
            index.remember(prefix, "a", FILE)
        index.remember("new/x/", "replaced", FILE)
    async with opened(tmp_path) as index:
        index.remember("old/x/", "late", FILE)
        index.moved("old/", "new/")
    async with opened(tmp_path) as index:
        assert await file_in(index, "old/", "a") is None
        assert await file_in(index, "older/", "a") == FILE
        for prefix, name in (("new/", "a"), ("new/x/", "a"), ("new/x/", "late")):
            assert await file_in(index, prefix, name) == FILE
        assert await file_in(index, "new/x/", "replaced") is None
        index.forget_tree("new/")
    async with opened(tmp_path) as index:
        assert await file_in(index, "new/x/", "a") is None
        assert await file_in(index, "older/", "a") == FILE


async def test_directories_are_known_for_a_time_or_for_good(tmp_path):
    async with opened(tmp_path, lasting=True) as index:
        now = trio.current_time()
        index.remember("", "own", DIRECTORY._replace(learnt=math.inf))
        index.remember("", "seen", DIRECTORY._replace(checked=now - 100))
    async with opened(tmp_path, lasting=True) as index:
        rows = await index.page("", ["own/", "seen/"])
        assert index.directory(rows, "own", 1.0).learnt == math.inf
        seen = index.directory(rows, "seen", 1.0)
        assert seen.attributes == DIRECTORY.attributes
        assert trio.current_time() - seen.learnt == pytest.approx(100, abs=5)
        index.forget_tree("")  # Nobody else knows them.
    async with opened(tmp_path) as index:
        rows = await index.page("", ["own/", "seen/"])
        assert index.directory(rows, "seen", 1.0) is not None
        assert index.directory(rows, "own", 1.0) is None


async def test_a_clock_that_was_set_back_makes_nothing_certain(tmp_path):
    async with opened(tmp_path) as index:
        index.remember("", "d", DIRECTORY._replace(checked=trio.current_time() + 1000))
    async with opened(tmp_path) as index:
        rows = await index.page("", ["d/"])
        assert rows
        assert index.directory(rows, "d", 1.0) is None


# -- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"no database" * 1000),
        lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 8192),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
    ],
)
async def test_a_damaged_file_is_made_anew(tmp_path, caplog, expect_log, damage):
    expect_log("attribute index is made anew")
    async with opened(tmp_path) as index:
        for number in range(500):
            index.remember("d/", f"{number}", FILE)
    damage(database_in(tmp_path))
    async with opened(tmp_path) as index:
        await index.page("d/", ["1", "499"])
        index.remember("d/", "new", FILE)
        await trio.sleep(1.5)
        index.remember("d/", "new", FILE)
    assert sum("made anew" in record.message for record in caplog.records) == 1
    assert list(tmp_path.glob("*.damaged"))
    async with opened(tmp_path) as index:
        assert await file_in(index, "d/", "new") == FILE


async def test_another_version_of_the_tables_is_made_anew(tmp_path):
    async with opened(tmp_path) as index:
        index.remember("d/", "a", FILE)
    with closing(sqlite3.connect(database_in(tmp_path))) as database:
        database.execute("PRAGMA user_version = 77")
    async with opened(tmp_path) as index:
        assert await file_in(index, "d/", "a") is None
        index.remember("d/", "b", FILE)
    async with opened(tmp_path) as index:
        assert await file_in(index, "d/", "b") == FILE


async def test_rows_that_somebody_spoilt_are_absent(tmp_path):
    async with opened(tmp_path) as index:
        index.remember("d/", "a", FILE)
        index.remember("d/", "b", FILE)
    with closing(sqlite3.connect(database_in(tmp_path))) as database:
        database.execute("UPDATE names SET record = '[[[[' WHERE name = 'a'")
        database.commit()
    async with opened(tmp_path) as index:
        rows = await index.page("d/", ["a", "b"])
        assert index.file(rows, "a", 1.0) is None
        assert index.file(rows, "b", 1.0) == FILE


async def test_a_locked_file_delays_nobody(tmp_path):
    async with opened(tmp_path) as index:
        index.remember("d/", "a", FILE)
    with closing(sqlite3.connect(database_in(tmp_path), isolation_level=None)) as other:
        async with opened(tmp_path) as index:
            other.execute("BEGIN IMMEDIATE")
            index.remember("d/", "b", FILE)
            begun = time.monotonic()
            assert await file_in(index, "d/", "a") == FILE
            assert time.monotonic() - begun < 0.5
            await trio.sleep(1.2)
            other.execute("ROLLBACK")
            index.remember("d/", "c", FILE)
    async with opened(tmp_path) as index:
        assert await file_in(index, "d/", "c") == FILE


async def test_a_full_disk_turns_it_off(tmp_path, expect_log):
    expect_log("attribute index is off")
    async with opened(tmp_path) as index:
        index.remember("d/", "a", FILE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with opened(tmp_path) as index:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, before[1]))
        try:
            for number in range(2000):
                index.remember("d/", f"{number}", FILE)
            await trio.sleep(1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert await file_in(index, "d/", "a") is None
        index.remember("d/", "late", FILE)
    async with opened(tmp_path) as index:
        assert await file_in(index, "d/", "a") == FILE


async def test_without_a_directory_nothing_is_kept(tmp_path, caplog, expect_log):
    expect_log("attribute index is off")
    (tmp_path / "file").write_bytes(b"")
    for path in (None, tmp_path / "file" / "index"):
        async with opened(path) as index:
            index.remember("d/", "a", FILE)
            assert await file_in(index, "d/", "a") is None
    assert sum("is off" in record.message for record in caplog.records) == 1


async def test_half_a_surrogate_pair_harms_nobody(tmp_path):
    async with opened(tmp_path) as index:
        index.remember("d/", "\ud800", FILE)
        index.remember("d/", "b", FILE)
        assert await index.page("d/", ["\ud800"]) == {}
    async with opened(tmp_path) as index:
        assert await file_in(index, "d/", "b") == FILE


async def test_only_so_many_files_stay(tmp_path):
    for number in range(40):
        old = tmp_path / f"{number:032}.sqlite3"
        old.write_bytes(b"")
        os.utime(old, (number, number))
    async with opened(tmp_path) as index:
        index.remember("d/", "a", FILE)
    left = sorted(path.name for path in tmp_path.glob("*.sqlite3"))
    assert len(left) == 33
    assert left[0] == f"{8:032}.sqlite3"


# -- bounds ------------------------------------------------------------------------------------


def change(number: int, directory: int) -> tuple[str, str, str]:
    return f"{directory:03}/", f"{number:05}", records.encode(f"{number:05}", FILE, 0)


def rows_in(path: Path) -> dict[str, int]:
    with closing(sqlite3.connect(path)) as database:
        query = "SELECT prefix, count(*) FROM names JOIN directories ON id = directory GROUP BY 1"
        return dict(database.execute(query).fetchall())


def test_the_directories_used_longest_ago_go_first(tmp_path):
    path = tmp_path / "index"
    with closing(IndexFile(path, max_rows=5000, max_size=1 << 30)) as file:
        for directory in range(12):
            changes = [change(number, directory) for number in range(500)]
            # Somebody still reads the very first one.
            file.write(changes, [], ["000/"], 1_000_000 + 10_000 * directory)
    left = rows_in(path)
    assert 4000 <= sum(left.values()) <= 5000
    assert "000/" in left
    assert "011/" in left
    assert "001/" not in left


def test_the_file_does_not_outgrow_its_bound(tmp_path):
    path = tmp_path / "index"
    with closing(IndexFile(path, max_rows=1 << 30, max_size=1 << 20)) as file:
        for directory in range(40):
            file.write([change(n, directory) for n in range(500)], [], [], directory)
    assert path.stat().st_size < 2 << 20
    assert rows_in(path)


def test_names_without_a_directory_do_not_stay(tmp_path):
    path = tmp_path / "index"
    with closing(IndexFile(path, max_rows=1 << 30, max_size=1 << 30)) as file:
        file.write([change(1, 1), change(1, 2)], [], [], 1)
        file.write([], [("002/", None), ("001/", "002/")], [], 2)
    assert rows_in(path) == {"002/": 1}
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM names").fetchone() == (1,)


async def test_a_version_seen_twice_is_kept_as_last_seen(tmp_path):
    newer = FILE._replace(attributes=replace(FILE.attributes, mode=0o100600), etag='"f"')
    async with opened(tmp_path) as index:
        index.remember("d/", "a", FILE)
        index.remember("d/", "a", newer)
    async with opened(tmp_path) as index:
        assert await file_in(index, "d/", "a") == newer
