"""Memory for blocks: every one is apart from the others, and unused memory goes back."""

from pathlib import Path

from s3mount.cache.arena import CHUNK_BLOCKS, WARM, Arena
from s3mount.memory import MemoryBudget
from s3mount.s3.checksum import function
from s3mount.write.staging import StagedFile, StagingDirectory

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


def test_staging_a_clean_block_takes_its_bytes_before_it_is_dropped(tmp_path: Path):
    """The memory that staging needs may be that of the very block that is staged."""
    arena, budget = Arena(SIZE), MemoryBudget(4 * SIZE)
    unused = [arena.take() for _ in range(WARM)]
    room = arena.take()
    room.view[:] = b"x" * SIZE
    for one in unused:
        arena.give(one)
    assert budget.try_take(4 * SIZE)

    def reclaim(missing: int) -> None:
        if budget.used == 4 * SIZE:
            arena.give(room)
            arena.cool(keep=0)
            budget.give(2 * SIZE)

    budget.reclaim_with(reclaim)
    staged = StagedFile(StagingDirectory(tmp_path / "staged", function("crc64nvme")), budget, 0)
    staged.write(0, room.view)
    assert staged.read(0, SIZE) == b"x" * SIZE
    staged.close()
