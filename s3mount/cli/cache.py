"""``s3mount cache``: what is cached for which bucket, and clearing it."""

import argparse
import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from s3mount.cache import ledger
from s3mount.cli.arguments import Parser
from s3mount.cli.asking import ask, own_mounts
from s3mount.cli.statustext import describe_time, printable
from s3mount.cli.umount import describe_size
from s3mount.errors import MountError
from s3mount.mounts import Mount
from s3mount.private import open_private
from s3mount.values import canonical

EPILOG = """\
Without arguments, all mounts are looked at that you may ask: root all of them,
others their own. BUCKET or MOUNTPOINT choose some of them.

--clear drops what these mounts have cached: names and attributes, blocks in
memory, and the blocks of their buckets on disk, for all mounts that share the
directory. Programs may go on meanwhile; what they read is fetched again. What
is written and not uploaded yet is in no cache, and stays.

--cache DIR looks into a directory that no mount has to use; with --clear all
of it is removed, or what the given buckets have there.

  s3mount cache
  s3mount cache --clear /mnt/data
  s3mount cache --cache /var/cache/s3mount --clear old-bucket

Exit codes: 0 done; 1 wrong usage; 32 there is no such mount, or it did not work."""

TIMEOUT = 600.0  # seconds: a large cache takes a while to remove
PATIENCE = 20.0  # seconds for mounts that write to the same directory
Found = Mapping[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Show what is cached, or clear it, and return the exit code."""
    parsed = parser().parse_args(arguments)
    if parsed.cache is not None:
        found = _in_directory(Path(parsed.cache), parsed.chosen, clear=parsed.clear)
        rows = _directory_rows(found)
        answer = {"directories": [found]}
    else:
        mounts = [_in_mount(mount, clear=parsed.clear) for mount in _chosen(parsed.chosen)]
        rows = _mount_rows([found for found in mounts if "error" not in found])
        answer = {"mounts": mounts}
    if parsed.json:
        print(json.dumps(answer, indent=2))
    elif text := "\n".join(rows) or ("" if answer.get("mounts") else "nothing is mounted"):
        print(text)
    failures = [found["error"] for found in answer.get("mounts", ()) if "error" in found]
    for failure in failures:
        print(f"s3mount: {failure}", file=sys.stderr)
    return 32 if failures else 0


def parser() -> argparse.ArgumentParser:
    """The arguments of this command."""
    parser = Parser(
        prog="s3mount cache",
        description="Shows what is cached for which bucket, and clears it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "chosen", metavar="BUCKET|MOUNTPOINT", nargs="*", help="only what these have cached [all]"
    )
    parser.add_argument("--cache", metavar="DIR", help="this directory, whoever uses it")
    parser.add_argument("--clear", action="store_true", help="drop it")
    parser.add_argument("--json", action="store_true", help="print everything, for programs")
    return parser


# -- mounts ------------------------------------------------------------------------------------


def _chosen(chosen: Sequence[str]) -> Sequence[Mount]:
    """The mounts that are meant; raises `MountError` for what none of them fits."""
    mounts = own_mounts()
    if not chosen:
        return mounts
    found: dict[Path, Mount] = {}
    for word in chosen:
        fits = [mount for mount in mounts if _fits(mount, word)]
        if not fits:
            raise MountError(f"{word} is neither a mount of s3mount nor a bucket that is mounted")
        found.update({mount.mountpoint: mount for mount in fits})
    return list(found.values())


def _fits(mount: Mount, word: str) -> bool:
    bucket = word.removeprefix("s3://").rstrip("/")
    return bucket in (mount.source, mount.source.partition("/")[0]) or (
        mount.mountpoint == canonical(word)
    )


def _in_mount(mount: Mount, *, clear: bool) -> Found:
    known = {"mountpoint": os.fspath(mount.mountpoint), "source": mount.source}
    try:
        return {**known, **ask(mount, "cache", {"clear": clear}, timeout=TIMEOUT)}
    except MountError as error:
        return {**known, "error": str(error)}


def _mount_rows(mounts: Sequence[Found]) -> Iterator[str]:
    told: set[str] = set()
    for found in mounts:
        yield from _mount_row(found)
    for found in mounts:
        disk = found["disk"]
        if disk is not None and disk["path"] not in told:
            told.add(disk["path"])
            yield from _directory_rows(disk)


def _mount_row(found: Found) -> Iterator[str]:
    where = f"{printable(found['source'])} at {printable(found['mountpoint'])}"
    if "freed" in found:
        freed = found["freed"]
        yield (
            f"{where}: dropped {freed['names']:,} names, "
            f"{describe_size(freed['memory_bytes'])} in memory, "
            f"{describe_size(freed['disk_bytes'])} on disk"
        )
        return
    memory = f"{describe_size(found['memory_bytes'])} in memory, {found['names']:,} names"
    disk = found["disk"]
    rate = ""
    if disk is not None and disk["hit_rate"] is not None:
        looked = disk["hits"] + disk["misses"]
        rate = f"; {disk['hit_rate']:.0%} of {looked:,} blocks that were missing came from disk"
    yield f"{where}: {memory}{rate}"


# -- directories -------------------------------------------------------------------------------


def _in_directory(path: Path, buckets: Sequence[str], *, clear: bool) -> Found:
    """What is in a directory, after clearing it; raises `MountError` where it is no cache."""
    if not (path / ledger.FILE).is_file():
        raise MountError(f"{path} is not a cache of s3mount")
    directory = open_private(path)
    try:
        database = ledger.connect(directory, PATIENCE)
        try:
            return _look(path, database, directory, buckets, clear=clear)
        finally:
            database.close()
    except sqlite3.Error as error:
        raise MountError(f"{path}: {error}") from error
    except OSError as error:
        raise MountError(f"{path}: {error.strerror}") from error
    finally:
        os.close(directory)


def _look(
    path: Path,
    database: sqlite3.Connection,
    directory: int,
    buckets: Sequence[str],
    *,
    clear: bool,
) -> Found:
    meant = [share for share in ledger.shares(database) if _is_meant(share, buckets)]
    if not clear:
        return {"path": os.fspath(path), "shares": [share.described() for share in meant]}
    if buckets:
        freed = sum(ledger.clear_store(database, directory, share.store) for share in meant)
    else:
        freed = ledger.clear_all(database, directory)
    left = [share.described() for share in ledger.shares(database)]
    return {"path": os.fspath(path), "shares": left, "freed": freed}


def _is_meant(share: ledger.Share, buckets: Sequence[str]) -> bool:
    found = share.described()
    return not buckets or found["bucket"] in [name.removeprefix("s3://") for name in buckets]


def _directory_rows(found: Found) -> Iterator[str]:
    shares = found["shares"]
    if "freed" in found:
        yield f"{printable(found['path'])}: {describe_size(found['freed'])} removed"
    size = describe_size(sum(share["bytes"] for share in shares))
    limit = f" of at most {describe_size(found['limit'])}" if "limit" in found else ""
    blocks = sum(share["blocks"] for share in shares)
    yield f"{printable(found['path'])}: {size}{limit}, {blocks:,} blocks"
    names = [_name(share) for share in shares]
    width = max(map(len, names), default=0)
    for name, share in zip(names, shares, strict=True):
        yield (
            f"  {name:<{width}}  {describe_size(share['bytes']):>10}  {share['blocks']:>8,} blocks"
            f"  used {_ago(share)} ago  {printable(share['endpoint'])}"
        )


def _ago(share: Found) -> str:
    return describe_time(time.time() - share["used"])


def _name(share: Found) -> str:
    if not share["bucket"]:
        return "(of an earlier version)"
    return printable(f"{share['bucket']}/{share['prefix']}".rstrip("/"))
