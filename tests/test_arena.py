"""Memory for blocks: every one is apart from the others, and unused memory goes back."""

from pathlib import Path

from s3mount.cache.arena import CHUNK_BLOCKS, WARM, Arena

SIZE = 1 << 20


def resident() -> int:
    """Bytes of memory that this process has at the moment."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_blocks_do_not_overlap():
    arena = Arena(4096)
    rooms = [arena.take() for _ in range(3 * CHUNK_BLOCKS)]
    for number, room in enumerate(rooms):
        room.view[:] = bytes([number]) * 4096
    for number, room in enumerate(rooms):
        assert bytes(room.view) == bytes([number]) * 4096


def test_what_was_given_back_is_handed_out_again():
    arena = Arena(4096)
    room = arena.take()
    arena.give(room)
    assert arena.take() is room


def test_unused_memory_goes_back_to_the_system():
    arena = Arena(SIZE)
    rooms = [arena.take() for _ in range(8 * WARM)]
    for room in rooms:
        room.view[:] = b"x" * SIZE
    full = resident()
    while rooms:
        plenty = arena.give(rooms.pop())
        assert plenty == (len(rooms) < 7 * WARM)
    arena.cool()
    assert resident() < full - 6 * WARM * SIZE
    arena.cool(keep=0)
    assert resident() < full - 7 * WARM * SIZE
    assert len(arena.take().view) == SIZE


def test_the_content_stays_until_somebody_takes_the_room_or_cools():
    arena = Arena(4096)
    rooms = [arena.take() for _ in range(3 * WARM)]
    for room in rooms:
        room.view[:] = b"x" * 4096
    for room in rooms:
        arena.give(room)
    assert all(bytes(room.view) == b"x" * 4096 for room in rooms)
