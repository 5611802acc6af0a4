"""A block of a staged file is what was written into it, however that came."""

from hypothesis import given
from hypothesis import strategies as st

from s3mount.write.stagedblock import MOST_PIECES, StagedBlock

writes = st.tuples(st.just("write"), st.integers(0, 80), st.binary(min_size=1, max_size=30))
appends = st.tuples(st.just("append"), st.just(0), st.binary(min_size=1, max_size=30))
cuts = st.tuples(st.just("cut"), st.integers(0, 100), st.just(b""))


def content(block: StagedBlock) -> bytes:
    return b"".join(block.views(0, 1000))


@given(st.lists(writes | appends | cuts, max_size=60), st.integers(0, 90), st.integers(0, 90))
def test_a_block_is_what_was_written(steps, low: int, high: int):
    block, model = StagedBlock(), bytearray()
    leaving = []
    for what, offset, data in steps:
        if what == "cut":
            block.cut(offset)
            del model[offset:]
        else:
            start = len(model) if what == "append" else offset
            block.write(start, memoryview(data))
            model.extend(bytes(max(0, start + len(data) - len(model))))
            model[start : start + len(data)] = data
        leaving += block.views(0, 1000)  # Parts that are being sent: nothing may fail by them.
        assert len(block) == len(model)
        assert content(block) == bytes(model)
    assert b"".join(block.views(low, high)) == bytes(model[low:high])


def test_what_comes_in_order_is_not_copied():
    request = bytes(range(256))
    block = StagedBlock()
    block.write(0, memoryview(request)[200:])
    block.write(56, memoryview(request)[:100])
    assert [view.obj for view in block.views(0, 156)] == [request, request]
    assert all(view.obj is request for view in block.views(0, 156))
    block.cut(100)
    assert all(view.obj is request for view in block.views(0, 156))
    assert len(block) == 100


def test_many_small_pieces_become_one_buffer():
    block = StagedBlock()
    for number in range(MOST_PIECES + 2):
        block.write(number, memoryview(b"x"))
    assert len(list(block.views(0, 100))) == 1


def test_a_part_that_is_leaving_keeps_the_end_that_it_had():
    block = StagedBlock()
    block.write(0, memoryview(b"abc"))
    block.write(1, memoryview(b"B"))
    (leaving,) = block.views(0, 3)
    block.write(3, memoryview(b"def"))
    assert bytes(leaving) == b"aBc"
    assert content(block) == b"aBcdef"
