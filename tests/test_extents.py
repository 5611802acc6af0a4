"""The arithmetic of byte ranges and upload plans, against naive models."""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.s3.store import MAX_PARTS, MIB, MIN_PART_SIZE
from s3mount.write.extents import ByteRange, Extents, PartGrid, plan_parts
from s3mount.write.records import SentPart
from s3mount.write.upload import Upload

SPANS = st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(0, 30)), max_size=30)


def build(spans) -> tuple[Extents, set[int]]:
    extents, model = Extents(), set()
    for add, start, length in spans:
        if add:
            extents.add(start, start + length)
            model |= set(range(start, start + length))
        else:
            extents.remove(start, start + length)
            model -= set(range(start, start + length))
    return extents, model


@given(SPANS)
def test_extents_behave_like_a_set_of_bytes(spans):
    extents, model = build(spans)
    assert {i for extent in extents for i in range(extent.start, extent.stop)} == model
    assert extents.total == len(model)
    ranges = list(extents)
    assert all(a.stop < b.start for a, b in itertools.pairwise(ranges))


@given(SPANS, st.integers(0, 90), st.integers(0, 30))
def test_questions_about_extents_agree_with_the_set(spans, start, length):
    extents, model = build(spans)
    wanted = set(range(start, start + length))
    assert extents.covers(start, start + length) == (wanted <= model)
    assert extents.overlaps(start, start + length) == bool(wanted & model)
    pieces = list(extents.pieces(start, start + length))
    assert [i for low, high, _ in pieces for i in range(low, high)] == sorted(wanted)
    assert all(set(range(low, high)) <= model for low, high, inside in pieces if inside)
    assert not any(set(range(low, high)) & model for low, high, inside in pieces if not inside)


def test_a_byte_range_is_never_empty():
    with pytest.raises(ValueError, match="not a byte range"):
        ByteRange(3, 3)


def test_the_grid_reaches_five_tebibytes_and_indexes_its_cells():
    grid = PartGrid(8 * MIB)
    assert grid.max_size >= 5 << 40
    for index in (0, 1, 3999, 4000, 5999, 6000, 9999):
        cell = grid.cell(index)
        assert grid.index(cell.start) == grid.index(cell.stop - 1) == index
    with pytest.raises(OverflowError):
        grid.cell(MAX_PARTS)


@given(
    st.integers(0, 400),
    st.integers(0, 400),
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 40)), max_size=12),
    st.integers(0, MIB - 1),
    st.sampled_from([5, 8, 16, 64]),
)
def test_a_plan_tiles_the_file_and_copies_only_clean_old_bytes(size, base, spans, odd, part):
    size, base = size * MIB // 2 + odd, base * MIB // 2 + odd // 3
    dirty = Extents()
    for start, length in spans:
        dirty.add(start * MIB // 2 + odd // 7, (start + length) * MIB // 2)
    parts = plan_parts(size, base, dirty, PartGrid(part * MIB))
    assert [p.range.start for p in parts] == [0, *[p.range.stop for p in parts]][: len(parts)]
    assert (parts[-1].range.stop if parts else 0) == size
    assert all(p.range.size >= MIN_PART_SIZE for p in parts[:-1])
    for p in parts:
        if p.copied:
            assert p.range.stop <= base
            assert not dirty.overlaps(p.range.start, p.range.stop)
    grid, sent = PartGrid(part * MIB), {p.range for p in parts if not p.copied}
    for cell in map(grid.cell, range(size // (part * MIB))):
        assert cell in sent or not dirty.covers(cell.start, cell.stop)


def upload_with(sent: Sequence[SentPart]) -> Upload:
    """An upload that has sent these parts; it asks no store for anything."""
    nobody: Any = None
    journal: Any = SimpleNamespace(put=lambda *_: None)
    upload = Upload(nobody, nobody, "key", {}, journal, copies=True)
    upload.resume("id", sent)
    return upload


@given(
    st.integers(20, 400),
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 9)), max_size=12),
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=3),
    st.sampled_from([5, 8, 16, 64]),
)
def test_parts_that_have_left_keep_their_numbers(size, spans, cells, part):
    """Whatever is changed before and between them: those bytes may be nowhere else."""
    size, grid = size * MIB, PartGrid(part * MIB)
    dirty, dropped = Extents(), Extents()
    for start, length in spans:
        dirty.add(start * MIB, start * MIB + length * 4096)
    left = {grid.cell(n) for first, count in cells for n in range(first, first + count)}
    left = {cell for cell in left if cell.stop <= size}
    for cell in left:
        dirty.add(cell.start, cell.stop)
        dropped.add(cell.start, cell.stop)
    sent = [SentPart(c.start, c.stop, grid.index(c.start) + 1, "e", None) for c in left]
    upload = upload_with(sent)
    parts = plan_parts(size, size, dirty, grid, lambda parts: upload.keeps(parts, dropped))
    assert upload.keeps(parts, dropped)
    assert all(p.range.size >= MIN_PART_SIZE for p in parts[:-1])
    assert left <= {p.range for p in parts if not p.copied}


def test_appending_little_to_much_sends_little():
    dirty = Extents()
    dirty.add(10_000 * MIB + 5, 10_000 * MIB + 1029)
    parts = plan_parts(10_000 * MIB + 1029, 10_000 * MIB + 5, dirty, PartGrid(8 * MIB))
    assert sum(p.range.size for p in parts if not p.copied) == 1024


def test_much_is_copied_by_many_requests_at_once_but_not_by_thousands():
    for size, count in ((64 * MIB, 1), (1024 * MIB, 8), (4 << 40, 1000)):
        parts = plan_parts(size, size, Extents(), PartGrid(8 * MIB))
        assert len(parts) == count
        assert all(part.copied for part in parts)
        assert max(part.range.size for part in parts) <= 5 << 30


def test_a_scattered_change_of_a_huge_file_keeps_to_ten_thousand_parts():
    dirty = Extents()
    for index in range(12_000):
        dirty.add(index * 16 * MIB, index * 16 * MIB + 1)
    size = 12_000 * 16 * MIB
    assert len(plan_parts(size, size, dirty, PartGrid(64 * MIB))) <= MAX_PARTS
