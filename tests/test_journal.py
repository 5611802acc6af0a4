"""The journal: what was said survives, what is damaged is noticed, and nobody is lied to."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3mount.attributes import Attributes
from s3mount.errors import Corrupt, MountError
from s3mount.fs.recovery import is_later
from s3mount.memory import MemoryBudget
from s3mount.s3.checksum import function
from s3mount.s3.store import ABSENT, ObjectInfo
from s3mount.write import slots
from s3mount.write.frames import FRAME_MAGIC, HEADER_SIZE, MAX_BLOB_SIZE, Framing
from s3mount.write.journal import Journal, read_file, read_log
from s3mount.write.logfile import LOG
from s3mount.write.mountjournal import MountJournal
from s3mount.write.records import (
    COPYING,
    FAILED,
    PENDING,
    Base,
    FileRecord,
    Piece,
    RemovalRecord,
    SentPart,
    TreeRecord,
    UploadRecord,
)
from s3mount.write.slots import DAMAGED, Slots
from s3mount.write.staging import BLOCK_SIZE, StagedFile, StagingDirectory

CRC = function("crc64nvme")
ATTRIBUTES = Attributes(0o100644, 1000, 1000, 1, 2)
MIB = 1 << 20

payloads = st.lists(
    st.tuples(st.binary(max_size=60), st.binary(max_size=200)), min_size=1, max_size=12
)


def log_of(said: list[tuple[bytes, bytes]], durable: list[int]) -> tuple[bytes, list[int]]:
    """A log of these texts and blobs, zeros behind it, and where each frame begins."""
    framing = Framing(b"0123456789abcdef", CRC)
    data, starts = framing.header(), []
    for number, ((text, blob), known) in enumerate(zip(said, durable, strict=True), 1):
        starts.append(len(data))
        data += framing.encode(number, known, text, blob)
    return data + bytes(500), starts


def scan(data: bytes):
    framing = Framing.of_log(data, CRC)
    assert framing is not None
    return framing.scan(data)


def said_by(found) -> list[tuple[bytes, bytes]]:
    return [(frame.text, frame.blob) for frame in found.frames]


# -- frames ------------------------------------------------------------------------------------


@given(payloads)
def test_what_was_written_is_read(said):
    data, _ = log_of(said, list(range(len(said))))
    found = scan(data)
    assert said_by(found) == said
    assert not found.gaps
    assert not found.torn


@given(payloads, st.data())
def test_any_prefix_is_a_torn_tail(said, data):
    log, starts = log_of(said, [0] * len(said))
    end = data.draw(st.integers(HEADER_SIZE, len(log)))
    found = scan(log[:end].ljust(len(log), b"\0"))
    whole = sum(1 for stop in [*starts[1:], len(log) - 500] if stop <= end)
    assert said_by(found)[:whole] == said[:whole]
    assert len(found.frames) in (whole, whole + 1)  # What was cut may have been zeros.
    assert not found.gaps


@given(payloads, st.data())
def test_any_flipped_byte_costs_its_frame_and_is_noticed(said, data):
    log, starts = log_of(said, list(range(len(said))))
    position = data.draw(st.integers(starts[0], len(log) - 501))
    flip = data.draw(st.integers(1, 255))
    damaged = bytearray(log)
    damaged[position] ^= flip
    found = scan(bytes(damaged))
    hit = max(index for index, start in enumerate(starts) if start <= position)
    if hit == len(said) - 1:
        assert said_by(found) == said[:-1]  # Nobody can tell it from a torn tail.
        assert found.torn or position < starts[hit] + len(FRAME_MAGIC)
    elif hit == len(said) - 2:
        # The next frame knows only that those before this one were on the disk.
        assert said_by(found) in (said[:hit], said[:hit] + said[hit + 1 :])
        assert found.torn or found.gaps
    else:
        assert said_by(found) == said[:hit] + said[hit + 1 :]
        assert list(found.gaps) == [hit]


@given(st.binary(max_size=3000))
def test_no_bytes_make_the_reader_fail(junk):
    framing = Framing(b"0123456789abcdef", CRC)
    scan(framing.header() + junk)
    read_log(junk, CRC)


def test_a_frame_in_a_users_bytes_is_no_frame_of_ours():
    theirs = Framing(b"another log's seed"[:16], CRC).encode(7, 6, b'{"id":"evil"}')
    data, starts = log_of(
        [(b"one", b"")] + [(b"two", theirs)] + [(b"three", b"")] * 2, [0, 1, 2, 3]
    )
    damaged = bytearray(data)
    damaged[starts[1] + 5] ^= 1
    found = scan(bytes(damaged))
    assert [frame.text for frame in found.frames] == [b"one", b"three", b"three"]
    assert list(found.gaps) == [1]


@pytest.mark.parametrize("position", [3, 20, 515, 530])
def test_one_damaged_header_does_not_matter(position: int):
    data, _ = log_of([(b"text", b"blob")], [0])
    damaged = bytearray(data)
    damaged[position] ^= 0xFF
    assert said_by(scan(bytes(damaged))) == [(b"text", b"blob")]


def test_holes_in_what_nobody_was_told_is_safe_are_a_torn_tail():
    data, starts = log_of([(b"%d" % n, b"") for n in range(6)], [0, 1, 2, 2, 2, 2])
    damaged = bytearray(data)
    damaged[starts[3] : starts[4]] = bytes(starts[4] - starts[3])
    found = scan(bytes(damaged))
    assert [frame.text for frame in found.frames] == [b"0", b"1", b"2"]
    assert found.torn
    assert not found.gaps


# -- the journal -------------------------------------------------------------------------------


def records_in(path: Path):
    return {
        name: (record.fields, record.blob)
        for name, record in read_log(read_file(path / LOG), CRC).records.items()
    }


async def test_put_change_and_remove(folder: int, tmp_path: Path):
    journal = Journal(folder, CRC)
    journal.create()
    journal.put("a", {"x": 1, "y": 1}, b"blob")
    journal.put("b", {"x": 2})
    journal.change("a", {"y": 2})
    journal.remove("b")
    journal.put("c", {})
    await journal.commit()
    assert records_in(tmp_path) == {"a": ({"x": 1, "y": 2}, b"blob"), "c": ({}, b"")}
    assert (tmp_path / LOG).stat().st_mode & 0o777 == 0o600
    journal.remove("a")
    journal.remove("c")
    assert journal.empty
    journal.close()


async def test_commits_at_one_time_share_a_synchronisation(folder: int, nursery):
    journal = Journal(folder, CRC)
    journal.create()

    async def say(name: str) -> None:
        journal.put(name, {})
        await journal.commit()

    import trio

    async with trio.open_nursery() as inner:
        for number in range(50):
            inner.start_soon(say, str(number))
    assert journal.commits == 50
    assert journal.syncs <= 3
    journal.close()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.sampled_from(["put", "change", "remove"]),
                  st.binary(max_size=2000)),
        max_size=60,
    )
)  # fmt: skip
def test_moving_the_log_changes_nothing(tmp_path_factory, steps):
    import trio

    async def run() -> None:
        path = tmp_path_factory.mktemp("log")
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        journal = Journal(descriptor, CRC, compact_size=HEADER_SIZE)
        journal.create()
        model: dict[str, tuple[dict[str, object], bytes]] = {}
        for number, (name, what, blob) in enumerate(steps):
            if what == "put":
                journal.put(name, {"n": number}, blob)
                model[name] = ({"n": number}, blob)
            elif what == "change" and name in model:
                journal.change(name, {"m": number})
                model[name] = ({**model[name][0], "m": number}, model[name][1])
            elif what == "remove":
                journal.remove(name)
                model.pop(name, None)
            await journal.commit()
        assert records_in(path) == model
        assert journal.empty == (not model)
        journal.close()
        os.close(descriptor)

    trio.run(run)


def failing(number: int) -> Callable[..., int]:
    """A pwrite(2) that fails."""

    def pwrite(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return pwrite


async def test_a_broken_disk_is_told_and_told_again(folder: int, monkeypatch, expect_log):
    journal = Journal(folder, CRC)
    journal.create()
    monkeypatch.setattr(os, "pwrite", failing(errno.EIO))
    journal.put("a", {})
    expect_log("the journal cannot be written")
    with pytest.raises(OSError, match="Input/output error"):
        await journal.commit()
    monkeypatch.undo()
    with pytest.raises(OSError, match="Input/output error"):
        journal.put("b", {})
    journal.close()


async def test_a_log_with_a_damaged_frame_goes_on_where_it_is(
    folder: int, tmp_path: Path, expect_log
):
    journal = Journal(folder, CRC, compact_size=HEADER_SIZE)
    journal.create()
    journal.put("a", {"text": "first"}, bytes(5000))  # More than a block, which stays as it is.
    await journal.commit()
    with (tmp_path / LOG).open("r+b") as file:
        file.seek(file.read().index(b"first"))
        file.write(b"FIRST")
    expect_log("the journal goes on in its old file")
    for number in range(200):  # Most of the log is not live any more, and it is to be moved.
        journal.put("b", {"n": number}, bytes(100))
        await journal.commit()
    assert records_in(tmp_path)["b"] == ({"n": 199}, bytes(100))
    journal.close()


async def test_a_record_that_nobody_would_read_back_is_refused(folder: int, tmp_path: Path):
    journal = Journal(folder, CRC)
    journal.create()
    with pytest.raises(OSError, match="too long"):
        journal.put("a", {}, bytes(MAX_BLOB_SIZE + 1))
    journal.put("b", {}, bytes(MAX_BLOB_SIZE))
    await journal.commit()
    assert list(records_in(tmp_path)) == ["b"]
    journal.close()


async def test_after_a_full_disk_the_journal_goes_on(
    folder: int, tmp_path: Path, monkeypatch, expect_log
):
    journal = Journal(folder, CRC)
    journal.create()
    journal.put("a", {})
    await journal.commit()
    monkeypatch.setattr(os, "pwrite", failing(errno.ENOSPC))
    expect_log("the journal has to wait for room")
    for name in "bc":
        journal.put(name, {})
        with pytest.raises(OSError, match="No space"):
            await journal.commit()
    for number in range(4):
        journal.put(f"{number}", {}, bytes(1 << 20))
    with pytest.raises(OSError, match="No space"):  # What waits for room is bounded.
        journal.put("one more", {})
    journal.remove("b")
    monkeypatch.undo()
    await journal.commit()
    journal.put("d", {})
    await journal.commit()
    journal.close()
    assert {"a", "c", "d"} < set(records_in(tmp_path))
    assert "b" not in records_in(tmp_path)


# -- records -----------------------------------------------------------------------------------


def file_record(**changes: object) -> FileRecord:
    fields: dict[str, object] = {"key": "dir/file", "size": 10, "attributes": ATTRIBUTES}
    return FileRecord(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_record_is_read_as_it_was_written():
    record = file_record(
        kept={"content-type": "text/plain"},
        base=Base("old", '"etag"', 7),
        base_limit=5,
        condition=ABSENT,
        expected='"replaced"',
        pieces=[Piece(0, 4, 1 << 63)],
        staged="abc",
        sent=[SentPart(0, 8, 1, '"e"', None)],
    )
    assert FileRecord.parse(json.loads(json.dumps(record.fields()))) == record
    earlier = {name: said for name, said in record.fields().items() if name != "expected"}
    assert FileRecord.parse(earlier).expected == ""
    upload = UploadRecord("key", "id", {"content-type": "x"}, "file")
    assert UploadRecord.parse(json.loads(json.dumps(upload.fields()))) == upload
    tree = TreeRecord("a/", "b/", COPYING, 1.5)
    assert TreeRecord.parse(json.loads(json.dumps(tree.fields()))) == tree
    removal = RemovalRecord("key", '"etag"', 1.5)
    assert RemovalRecord.parse(json.loads(json.dumps(removal.fields()))) == removal


odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=4), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(st.sampled_from(sorted({*file_record().fields(), "etag", "phase"})), odd_values)
def test_no_record_makes_the_reader_fail(name, value):
    fields = {
        **TreeRecord("a/", "b/", COPYING, 1.0).fields(),
        **UploadRecord("k", "id", {}).fields(),
        **file_record().fields(),
        **RemovalRecord("k", "etag", 1.0).fields(),
    }
    for parse in (FileRecord.parse, UploadRecord.parse, TreeRecord.parse, RemovalRecord.parse):
        assert parse(fields)
        try:
            parse({**fields, name: value})
        except ValueError:
            continue


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "/etc/passwd"])
def test_check_45_a_record_cannot_name_a_file_elsewhere(name: str):
    with pytest.raises(ValueError, match="name of a staged file"):
        FileRecord.parse({**file_record().fields(), "staged": name})


# -- slots -------------------------------------------------------------------------------------


async def open_journal(state: Path, *, adopt: bool = True) -> MountJournal:
    return await MountJournal.open(Slots(state, "store"), CRC, {"bucket": "b"}, adopt=adopt)


async def crash(mine: MountJournal) -> None:
    """Leave everything as a daemon would that was killed a moment later."""
    await mine.journal.commit()
    mine.journal.close()
    mine.slot.release()


async def test_a_clean_end_leaves_nothing(tmp_path: Path):
    mine = await open_journal(tmp_path)
    assert mine.slot.path.stat().st_mode & 0o777 == 0o700
    await mine.close()
    assert not mine.slot.path.exists()


async def test_a_log_that_was_removed_does_not_come_back_by_a_power_loss(
    tmp_path: Path, monkeypatch
):
    mine = await open_journal(tmp_path)
    synchronised: list[list[str]] = []

    def sync(path: Path) -> None:
        synchronised.append(sorted(one.name for one in path.iterdir()))

    monkeypatch.setattr(slots, "sync_directory", sync)
    await mine.close()
    assert synchronised == [["about.json", "staged"]]  # Without the log, and before the rest goes.


async def test_check_32_no_two_mounts_share_a_slot(tmp_path: Path):
    one = await open_journal(tmp_path)
    one.journal.put("a", file_record().fields())
    other = await open_journal(tmp_path)
    assert other.slot.path != one.slot.path
    assert not other.left.files
    await crash(one)
    third = await open_journal(tmp_path)
    assert set(third.left.files) == {"a"}
    assert not one.slot.path.exists()
    await other.close()
    await third.close()


async def test_the_next_mount_takes_over_bytes_and_records(tmp_path: Path):
    one = await open_journal(tmp_path)
    staged = StagedFile(StagingDirectory(one.slot.staged, CRC), MemoryBudget(64 * MIB), 0)
    staged.write(0, b"x" * 3 * MIB)
    pieces = await staged.secure()
    assert staged.path is not None
    record = file_record(key="big", size=3 * MIB, pieces=pieces, staged=staged.path.name)
    one.journal.put("big", record.fields())
    one.journal.put("small", file_record(pieces=[Piece(0, 5, 0)], size=5).fields(), b"bytes")
    one.journal.put("up", UploadRecord("k", "id", {}).fields())
    one.journal.put("tree", TreeRecord("a/", "b/", COPYING, 1.0).fields())
    one.journal.put("gone", RemovalRecord("k", "etag", 1.0).fields())
    staged.leave()
    await crash(one)
    two = await open_journal(tmp_path)
    assert set(two.left.files) == {"big", "small"}
    assert two.left.blobs["small"] == b"bytes"
    assert set(two.left.uploads) == {"up"}
    assert set(two.left.trees) == {"tree"}
    assert (two.slot.staged / record.staged).stat().st_size == 3 * MIB
    await crash(two)
    three = await open_journal(tmp_path)
    assert set(three.left.uploads) == {"up"}
    assert set(three.left.removals) == {"gone"}
    await crash(three)


async def test_of_two_versions_of_a_name_the_last_one_holds(tmp_path: Path):
    one = await open_journal(tmp_path)
    one.journal.put("old", file_record(time=1.0).fields())
    one.journal.put("new", file_record(time=2.0).fields())
    one.journal.put("lost", file_record(time=3.0, state=FAILED).fields())
    await crash(one)
    two = await open_journal(tmp_path)
    assert set(two.left.files) == {"new", "lost"}
    await crash(two)


async def test_check_30_damage_behind_a_record_makes_it_a_matter_for_people(
    tmp_path: Path, expect_log
):
    one = await open_journal(tmp_path)
    for name in ("a", "b", "c", "d"):
        one.journal.put(name, file_record(key=name).fields())
        await one.journal.commit()
    log = one.slot.path / LOG
    data = bytearray(log.read_bytes())
    data[data.index(b'"id":"b"') + 20] ^= 1
    log.write_bytes(data)
    await crash(one)
    expect_log("this journal is damaged")
    expect_log("the damaged journal is kept in")
    two = await open_journal(tmp_path)
    assert {name: file.state for name, file in two.left.files.items()} == {
        "a": FAILED,
        "c": PENDING,
        "d": PENDING,
    }
    assert [path for path in two.slot.path.parent.iterdir() if path.name.startswith(DAMAGED)]
    await crash(two)


async def test_check_47_a_journal_that_others_can_read_is_refused(tmp_path: Path):
    (tmp_path / "journals").mkdir(mode=0o755)
    with pytest.raises(MountError, match="open to others"):
        await open_journal(tmp_path)


def test_what_was_to_be_replaced_is_not_later_whatever_the_clock_of_the_store_says():
    ahead = int((1000.0 + 300.0) * 1e9)  # Seconds: the store's clock is five minutes ahead.
    record = file_record(expected='"old"', time=1000.0)
    assert not is_later(ObjectInfo("key", 1, '"old"', ahead, {}, {}), record)
    assert is_later(ObjectInfo("key", 1, '"theirs"', ahead, {}, {}), record)


# -- staged bytes ------------------------------------------------------------------------------

writes = st.lists(
    st.tuples(st.integers(0, 3 * BLOCK_SIZE), st.integers(1, BLOCK_SIZE // 2), st.integers(1, 255)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(writes, st.integers(0, 3 * BLOCK_SIZE), st.booleans())
def test_staged_bytes_are_secured_and_restored(tmp_path_factory, changes, cut, follow):
    import trio

    async def run() -> None:
        directory = StagingDirectory(tmp_path_factory.mktemp("staged"), CRC, follow=follow)
        budget = MemoryBudget(2 * MIB)
        staged = StagedFile(directory, budget, 0)
        model = bytearray(4 * BLOCK_SIZE)
        for start, size, value in changes:
            staged.write(start, bytes([value]) * size)
            model[start : start + size] = bytes([value]) * size
        staged.truncate(cut)
        model[cut:] = bytes(len(model) - cut)
        pieces = await staged.secure()
        assert await staged.secure() == pieces
        old = await staged.fork()
        staged.write(0, b"changed")
        back = StagedFile.restore(directory, budget, 0, old, pieces)
        for piece in pieces:
            assert back.read(piece.start, piece.stop) == model[piece.start : piece.stop]
        await back.check(0, len(model))
        staged.close()
        back.close()
        assert budget.used == 0
        assert not list(directory.path.iterdir())

    trio.run(run)


@pytest.mark.parametrize("follow", [False, True])
async def test_what_is_written_over_secured_bytes_has_its_own_checksum(
    tmp_path: Path, *, follow: bool
):
    directory, budget = StagingDirectory(tmp_path / "s", CRC, follow=follow), MemoryBudget(64 * MIB)
    staged = StagedFile(directory, budget, 0)
    staged.write(0, b"x" * 100_000)
    await staged.secure()
    old = await staged.fork()
    staged.write(0, b"y" * 100_000)
    pieces = await staged.secure()
    path = staged.leave()
    assert path not in (None, old)
    back = StagedFile.restore(directory, budget, 0, path, pieces)
    assert back.read(0, 100_000) == b"y" * 100_000
    back.close()


async def test_bytes_that_the_store_alone_has_are_never_given_out_as_zeros(tmp_path: Path):
    """Neither from memory, nor from the file that their neighbours are in."""
    staged = StagedFile(StagingDirectory(tmp_path / "s", CRC), MemoryBudget(8 * MIB), 0)
    staged.write(0, b"x" * 3 * MIB)
    staged.departed(MIB, 2 * MIB)
    assert staged.dropped.total == MIB
    for _ in range(2):
        for give in (staged.read, staged.body):
            with pytest.raises(OSError, match="in the store only"):
                give(0, 3 * MIB)
        assert staged.read(2 * MIB, 3 * MIB) == b"x" * MIB
        await staged.secure()
    staged.close()


@pytest.mark.parametrize("damage", ["flip", "cut"])
async def test_check_30_damaged_staged_bytes_are_never_given_out(tmp_path: Path, damage: str):
    directory, budget = StagingDirectory(tmp_path / "s", CRC), MemoryBudget(64 * MIB)
    staged = StagedFile(directory, budget, 0)
    staged.write(0, b"x" * (2 * MIB + 5))
    pieces = await staged.secure()
    path = staged.leave()
    assert path is not None
    if damage == "cut":
        os.truncate(path, 2 * MIB)
    else:
        with path.open("r+b") as file:
            file.seek(2 * MIB + 3)
            file.write(b"y")
    back = StagedFile.restore(directory, budget, 0, path, pieces)
    assert back.read(0, 2 * MIB) == b"x" * 2 * MIB
    with pytest.raises(Corrupt):
        back.read(2 * MIB, 2 * MIB + 5)
    with pytest.raises(Corrupt):
        await back.check(0, 2 * MIB + 5)
    with pytest.raises(Corrupt):
        back.write(2 * MIB + 1, b"z")
    with pytest.raises(Corrupt):
        back.truncate(2 * MIB + 1)
    back.close()
