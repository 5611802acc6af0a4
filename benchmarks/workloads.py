"""The workloads: what each needs in the bucket, what it does, and what is looked at afterwards."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.data import (
    APPEND_SIZE,
    LISTED_METADATA,
    PATCH_SIZE,
    SMALL_SIZE,
    Scale,
    large_parts,
    small_name,
    stamped,
    tree_name,
)
from benchmarks.meter import Phase
from benchmarks.objects import Bucket

LARGE, LISTED, NAMES, SMALL = "large/", "listed/", "names/", "small/"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the tables: which phase it shows, and in which unit.

    Units that end in ``/s`` are rates (MB is 10**6 bytes), the others are times of which less
    is better.
    """

    key: str
    title: str
    unit: str
    phase: str

    @property
    def is_rate(self) -> bool:
        """Whether more is better."""
        return self.unit.endswith("/s")

    def value(self, phase: Phase) -> float:
        """The figure that this row shows of *phase*."""
        if not self.is_rate:
            return phase.seconds * (1000 if self.unit == "ms" else 1)
        return phase.amount / phase.seconds / (1e6 if self.unit == "MB/s" else 1)

    def better(self, one: float, other: float) -> bool:
        """Whether *one* is a better figure than *other*."""
        return one > other if self.is_rate else one < other


Prepare = Callable[[Bucket, str, Scale], None]
Arrived = Callable[[Bucket, str, Scale, Phase], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One thing that is measured.

    `loads` run one after the other, each on a fresh mount; the rows show phases of the last.
    They work in the folder of a data set that is loaded once, or, when the workload `writes`,
    in a folder of their own that `prepare` fills.  `arrived` asks the server whether all was
    there when the last call had returned.  A `persistent` workload keeps the local cache from
    mount to mount.
    """

    name: str
    rows: Sequence[Row]
    loads: Sequence[str]
    count: Callable[[Scale], int] = field(default=lambda _scale: 0)
    size: Callable[[Scale], int] = field(default=lambda scale: scale.large)
    threads: int = 1
    data_set: str = ""
    writes: bool = False
    prepare: Prepare | None = None
    arrived: Arrived | None = None
    persistent: bool = False
    writeback: bool = False
    needs_archive: bool = False


def _load_large(bucket: Bucket, scale: Scale) -> None:
    bucket.put_large(f"{LARGE}file", large_parts(scale.large))


def _load_listed(bucket: Bucket, scale: Scale) -> None:
    names = (f"{LISTED}{small_name(number)}" for number in range(scale.listed))
    bucket.put_small(names, b"listed", LISTED_METADATA)


def _load_names(bucket: Bucket, scale: Scale) -> None:
    bucket.put_small((f"{NAMES}{small_name(number)}" for number in range(scale.names)), b"name")


def _load_small(bucket: Bucket, scale: Scale) -> None:
    names = (f"{SMALL}{small_name(number)}" for number in range(scale.small))
    bucket.put_small(names, bytes(stamped(SMALL_SIZE, 0)))


_LOADERS: Mapping[str, Callable[[Bucket, Scale], None]] = {
    LARGE: _load_large,
    LISTED: _load_listed,
    NAMES: _load_names,
    SMALL: _load_small,
}


class DataSets:
    """The objects that workloads only read: each set is loaded when it is first needed."""

    def __init__(self, bucket: Bucket, scale: Scale) -> None:
        self._bucket = bucket
        self._scale = scale
        self._loaded: set[str] = set()

    def need(self, name: str) -> None:
        """Make sure that the set *name*, which is also its folder, is in the bucket."""
        if name and name not in self._loaded:
            self._bucket.put_small([name], b"")  # the marker of the directory
            _LOADERS[name](self._bucket, self._scale)
            self._loaded.add(name)


def _copy_large(bucket: Bucket, prefix: str, _scale: Scale) -> None:
    bucket.copy(f"{LARGE}file", f"{prefix}file")


def _fill_renamed(bucket: Bucket, prefix: str, scale: Scale) -> None:
    names = (f"{prefix}old/{small_name(number)}" for number in range(scale.renamed))
    bucket.put_small([f"{prefix}old/"], b"")
    bucket.put_small(names, bytes(stamped(SMALL_SIZE, 0)))


def _fill_removed(bucket: Bucket, prefix: str, scale: Scale) -> None:
    names = [f"{prefix}tree/{tree_name(number)}" for number in range(scale.removed)]
    folders = {name.rpartition("/")[0] + "/" for name in names}
    bucket.put_small([f"{prefix}tree/", *sorted(folders)], b"")
    bucket.put_small(names, b"removed")


def _all_bytes(bucket: Bucket, prefix: str, _scale: Scale, phase: Phase) -> bool:
    return list(bucket.sizes(prefix).values()) == [phase.amount]


def _all_small_files(bucket: Bucket, prefix: str, _scale: Scale, phase: Phase) -> bool:
    return list(bucket.sizes(prefix).values()) == [SMALL_SIZE] * int(phase.amount)


def _all_files(bucket: Bucket, prefix: str, _scale: Scale, phase: Phase) -> bool:
    sizes = bucket.sizes(prefix).values()
    return len(sizes) == phase.amount and all(sizes)


def _all_renamed(bucket: Bucket, prefix: str, _scale: Scale, phase: Phase) -> bool:
    keys = bucket.sizes(prefix)
    return len(keys) == phase.amount and all(key.startswith(f"{prefix}new/") for key in keys)


def _nothing_left(bucket: Bucket, prefix: str, _scale: Scale, _phase: Phase) -> bool:
    return not bucket.sizes(prefix)


def _appended(bucket: Bucket, prefix: str, scale: Scale, _phase: Phase) -> bool:
    return bucket.sizes(prefix) == {f"{prefix}file": scale.large + APPEND_SIZE}


def _patched(bucket: Bucket, prefix: str, scale: Scale, _phase: Phase) -> bool:
    return not any(bucket.read(f"{prefix}file", scale.large // 2, PATCH_SIZE))


def _small_files(name: str, title: str, load: str, threads: int, **rest: object) -> Workload:
    plural = "thread" if threads == 1 else "threads"
    row = Row(f"{name}{threads}", f"{title}, {threads} {plural}", "files/s", "files")
    return Workload(
        name=f"{name}{threads}",
        rows=[row],
        loads=[load],
        count=lambda scale: scale.small,
        threads=threads,
        **rest,
    )


def _create(threads: int) -> Workload:
    title = "create 4 KiB files, uploaded at close"
    return _small_files(
        "create", title, "create_small_files", threads, writes=True, arrived=_all_small_files
    )


def _create_behind(threads: int) -> Workload:
    title = "create 4 KiB files, close does not wait"
    return _small_files("behind", title, "create_small_files", threads, writes=True, writeback=True)


def _read_small(threads: int) -> Workload:
    return _small_files("small", "read 4 KiB files", "read_small_files", threads, data_set=SMALL)


def _random(threads: int) -> Workload:
    plural = "thread" if threads == 1 else "threads"
    title = f"random 4 KiB reads, cold, {threads} {plural}"
    return Workload(
        name=f"random{threads}",
        rows=[Row(f"random{threads}", title, "reads/s", "read")],
        loads=["read_random"],
        count=lambda scale: scale.random_reads * (1 if threads == 1 else 4),
        threads=threads,
        data_set=LARGE,
    )


WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(
            name="read",
            rows=[
                Row("read", "sequential read, cold", "MB/s", "cold"),
                Row("second", "second read of the open file", "MB/s", "second"),
                Row("reopened", "second read, after close and open", "MB/s", "reopened"),
            ],
            loads=["read_file"],
            data_set=LARGE,
        ),
        Workload(
            name="remount",
            rows=[Row("remount", "read after a remount, from the disk cache", "MB/s", "read")],
            loads=["read_file_once", "read_file_once"],
            data_set=LARGE,
            persistent=True,
        ),
        Workload(
            name="write",
            rows=[Row("write", "sequential write, fsync, close", "MB/s", "write")],
            loads=["write_file"],
            writes=True,
            arrived=_all_bytes,
        ),
        Workload(
            name="pieces",
            rows=[Row("pieces", "write in 4 KiB pieces, close", "MB/s", "write")],
            loads=["write_pieces"],
            size=lambda scale: scale.pieces,
            writes=True,
            arrived=_all_bytes,
        ),
        Workload(
            name="copied",
            rows=[
                Row("copied", "writeback 2 GiB close vs local copy with fsync", "times", "ratio")
            ],
            loads=["write_behind"],
            size=lambda scale: 2 * scale.large,
            writes=True,
            writeback=True,
        ),
        _random(1),
        _random(16),
        Workload(
            name="ls",
            rows=[Row("ls", "ls -l", "entries/s", "list")],
            loads=["list_long"],
            count=lambda scale: scale.listed,
            data_set=LISTED,
        ),
        Workload(
            name="ls-again",
            rows=[Row("ls-again", "ls -l after a remount", "entries/s", "list")],
            loads=["list_long", "list_long"],
            count=lambda scale: scale.listed,
            data_set=LISTED,
            persistent=True,
        ),
        Workload(
            name="names",
            rows=[
                Row("names", "list a large directory, names only", "entries/s", "list"),
                Row("first", "time to its first entry", "ms", "first"),
            ],
            loads=["list_names"],
            count=lambda scale: scale.names,
            data_set=NAMES,
        ),
        _read_small(1),
        _read_small(16),
        _create(1),
        _create(16),
        _create_behind(1),
        _create_behind(16),
        Workload(
            name="rename",
            rows=[Row("rename", "rename a directory", "files/s", "rename")],
            loads=["rename_directory"],
            count=lambda scale: scale.renamed,
            prepare=_fill_renamed,
            writes=True,
            arrived=_all_renamed,
        ),
        Workload(
            name="remove",
            rows=[Row("remove", "rm -r", "files/s", "remove")],
            loads=["remove_tree"],
            count=lambda scale: scale.removed,
            prepare=_fill_removed,
            writes=True,
            arrived=_nothing_left,
        ),
        Workload(
            name="unpack",
            rows=[Row("unpack", "unpack a tar of small files", "files/s", "unpack")],
            loads=["unpack"],
            count=lambda scale: scale.unpacked,
            writes=True,
            arrived=_all_files,
            needs_archive=True,
        ),
        Workload(
            name="append",
            rows=[Row("append", "append 1 KiB to a large file", "s", "change")],
            loads=["append"],
            data_set=LARGE,
            prepare=_copy_large,
            writes=True,
            arrived=_appended,
        ),
        Workload(
            name="patch",
            rows=[Row("patch", "patch 4 KiB inside a large file", "s", "change")],
            loads=["patch"],
            data_set=LARGE,
            prepare=_copy_large,
            writes=True,
            arrived=_patched,
        ),
    )
}

ROWS: Mapping[str, Row] = {row.key: row for workload in WORKLOADS.values() for row in workload.rows}
