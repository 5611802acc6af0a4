"""``s3mount recover [BUCKET]``: what could not be uploaded, and what shall become of it."""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from s3mount.cli.arguments import Parser
from s3mount.cli.umount import describe_size
from s3mount.config import state_directory
from s3mount.controlclient import Connection, ControlError, find_socket
from s3mount.errors import MountError, PosixError, StoreError
from s3mount.fs.names import to_name
from s3mount.s3.checksum import function
from s3mount.write.journal import Contents, read_file, read_log
from s3mount.write.logfile import LOG
from s3mount.write.records import FAILED, FILE, KIND, FileRecord
from s3mount.write.slots import DAMAGED, STAGED, all_slots, is_locked, read_about

EPILOG = """\
Without an option the files are listed.  PATH chooses some of them, as the list shows them (a
directory: all below it).  --upload replaces what is in the bucket by now.

Exit codes: 0 done; 1 wrong usage; 32 something could not be done."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One file that is kept: the slot it is in, and what the journal says of it."""

    slot: Path
    about: Mapping[str, object]
    running: bool
    name: str
    record: FileRecord
    blob: bytes

    @property
    def path(self) -> str:
        """The bucket and the key, as people write them."""
        return f"{self.about.get('bucket', '?')}/{self.about.get('prefix', '')}{self.record.key}"

    @property
    def reason(self) -> str:
        """Why it is not in the bucket."""
        if self.record.state == FAILED:
            return self.record.reason or "not uploaded when the mount ended"
        return "waits for the next mount of the bucket"


def main(arguments: Sequence[str]) -> int:
    """List, upload, export or discard, and return the exit code."""
    parsed = parser().parse_intermixed_args(arguments)
    found = [kept for kept in find(parsed.state_dir) if _wanted(kept, parsed.bucket, parsed.path)]
    _tell_damaged(parsed.state_dir)
    if parsed.export is not None:
        return _export(found, parsed.export)
    if not parsed.upload and not parsed.discard:
        return _list(found)
    if parsed.discard and not parsed.yes and not _is_certain(found):
        return 1
    return _act(found, "upload" if parsed.upload else "discard")


def parser() -> argparse.ArgumentParser:
    """The arguments of this command."""
    parser = Parser(
        prog="s3mount recover",
        description="Shows files that could not be uploaded; uploads, exports or discards them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("bucket", metavar="BUCKET", nargs="?", help="only files of this bucket")
    parser.add_argument("path", metavar="PATH", nargs="*", help="only these files")
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        type=Path,
        default=state_directory(),
        help="the state directory of the mounts [that of the mounts of this user]",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--upload", action="store_true", help="upload them now")
    what.add_argument("--export", metavar="DIR", type=Path, help="copy them into a directory")
    what.add_argument("--discard", action="store_true", help="throw them away")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def find(state_dir: Path) -> Iterator[Kept]:
    """Everything that is kept in a state directory, and is not on its way."""
    for slot in all_slots(state_dir):
        if slot.name.startswith(DAMAGED):
            continue
        running = is_locked(slot)
        contents: Contents = read_log(read_file(slot / LOG), function("crc64nvme"))
        about = read_about(slot)
        for record in contents.records.values():
            if record.fields.get(KIND) != FILE:
                continue
            try:
                file = FileRecord.parse(record.fields)
            except ValueError as error:
                print(f"s3mount: {slot}: {error}", file=sys.stderr)
                continue
            if file.state == FAILED or not running:
                yield Kept(slot, about, running, record.name, file, record.blob)


def _wanted(kept: Kept, bucket: str | None, paths: Sequence[str]) -> bool:
    if bucket is None:
        return True
    bucket = bucket.removeprefix("s3://").rstrip("/")
    if kept.path != bucket and not kept.path.startswith(f"{bucket}/"):
        return False
    chosen = [path.rstrip("/") for path in paths]
    return not chosen or any(kept.path == p or kept.path.startswith(f"{p}/") for p in chosen)


def _tell_damaged(state_dir: Path) -> None:
    for slot in all_slots(state_dir):
        if slot.name.startswith(DAMAGED):
            print(f"s3mount: a damaged journal is kept in {slot}", file=sys.stderr)


def _list(found: Sequence[Kept]) -> int:
    for kept in found:
        age = max(0.0, time.time() - kept.record.time)
        size = describe_size(kept.record.size)
        print(f"{_printable(kept.path)}\t{size}\t{describe_age(age)}\t{_printable(kept.reason)}")
    if not found:
        print("nothing is kept", file=sys.stderr)
    return 0


def _printable(text: str) -> str:
    """No name that somebody gave to a file plays tricks with the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def describe_age(seconds: float) -> str:
    """Say how long ago something was."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"


# -- export ------------------------------------------------------------------------------------


def _export(found: Sequence[Kept], target: Path) -> int:
    failed = 0
    for kept in found:
        names = [os.fsdecode(to_name(segment)) for segment in kept.path.split("/")]
        path = target.joinpath(*names)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _export_one(kept, path)
        except OSError as error:
            print(f"s3mount: {_printable(str(path))}: {error.strerror}", file=sys.stderr)
            failed += 1
            continue
        staged = sum(piece.stop - piece.start for piece in kept.record.pieces)
        if kept.record.base_limit and staged < kept.record.size:
            print(f"{_printable(str(path))}: only the {describe_size(staged)} that were written")
        else:
            print(_printable(str(path)))
    return 32 if failed else 0


def _export_one(kept: Kept, path: Path) -> None:
    """Copy what was written; what was not is a hole.  Damage is told, and never copied."""
    checksum = function("crc64nvme")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        if not kept.record.staged:
            position = 0
            for piece in kept.record.pieces:
                size = piece.stop - piece.start
                file.seek(piece.start)
                file.write(kept.blob[position : position + size])
                position += size
        else:
            source = os.open(kept.slot / STAGED / kept.record.staged, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                for piece in kept.record.pieces:
                    data = os.pread(source, piece.stop - piece.start, piece.start)
                    if checksum(data, 0) != piece.crc:
                        print(
                            f"s3mount: {_printable(kept.path)}: bytes {piece.start} to "
                            f"{piece.stop} are damaged, and left out",
                            file=sys.stderr,
                        )
                        continue
                    file.seek(piece.start)
                    file.write(data)
            finally:
                os.close(source)
        file.truncate(kept.record.size)


# -- upload and discard ------------------------------------------------------------------------


def _is_certain(found: Sequence[Kept]) -> bool:
    """Ask twice: what is thrown away exists nowhere else."""
    if not found:
        return True
    _list(found)
    if not sys.stdin.isatty():
        print("s3mount: --discard needs a terminal, or --yes", file=sys.stderr)
        return False
    print(f"Throw away {len(found)} files that exist nowhere else? [yes/no] ", end="", flush=True)
    if sys.stdin.readline().strip() != "yes":
        return False
    print("They cannot be brought back. Type their number to go on: ", end="", flush=True)
    return sys.stdin.readline().strip() == str(len(found))


def _act(found: Sequence[Kept], action: str) -> int:
    failures: list[str] = []
    done: list[str] = []
    groups: dict[Path, list[Kept]] = {}
    for kept in found:
        groups.setdefault(kept.slot if kept.running else kept.slot.parent, []).append(kept)
    for group in groups.values():
        names = [kept.name for kept in group]
        try:
            result = (
                _ask_daemon(group[0], action, names)
                if group[0].running
                else _act_here(group[0], action, names)
            )
        except (MountError, StoreError, PosixError, OSError, ControlError) as error:
            failures.append(str(error))
            continue
        done.extend(result["done"])
        failures.extend(result["failed"])
    for key in done:
        print(f"{'uploaded' if action == 'upload' else 'discarded'}: {_printable(key)}")
    for failure in failures:
        print(f"s3mount: {_printable(failure)}", file=sys.stderr)
    return 32 if failures else 0


def _ask_daemon(kept: Kept, action: str, names: Sequence[str]) -> Mapping[str, Sequence[str]]:
    mountpoint = Path(str(kept.about.get("mountpoint", "")))
    socket = find_socket(mountpoint, kept.slot.stat().st_uid)
    if socket is None:
        raise MountError(f"the daemon that serves {mountpoint} cannot be asked")
    with Connection(socket) as connection:
        answer = connection.ask("recover", {"action": action, "names": list(names)})
    assert isinstance(answer, dict)
    return answer


def _act_here(kept: Kept, action: str, names: Sequence[str]) -> Mapping[str, Sequence[str]]:
    # Imported here, because a list should not pay for boto3 and an event loop.
    from s3mount.cli.recovering import run

    return run(kept.slot.parent, kept.about, action, names)
