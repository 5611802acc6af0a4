"""The document about stores, made of what `tests.compatibility` has found."""

import datetime
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from s3mount import __version__
from s3mount.s3.probe import WEAKNESSES
from s3mount.storecheck import SUBJECTS

Found = Mapping[str, Any]

TITLES = {
    "weed": "SeaweedFS",
    "moto": "moto",
    "rclone": "rclone serve s3",
    "rustfs": "RustFS",
    "minio": "MinIO",
    "versitygw": "versitygw",
    "ceph": "Ceph radosgw",
    "endpoint": "endpoint",
}
SUITES = {"conformance": "Conformance", "posix": "POSIX"}
FACTS = ("checksums", "listing order", "smallest part", "damaged bodies", "2 KB of metadata",
         "odd names")  # fmt: skip
INTRODUCTION = """\
# Stores

<!-- Written by scripts/compatibility: change that, not this. -->

Each store below was started, and tried with the conformance suite of stores, with the POSIX
suite through a real mount, and with `s3mount doctor`. s3mount finds by itself at each mount what
a store lacks, and works by that: there is no option to set, but for `signature=v2` where a store
knows no other signatures.

To try the stores that are found on this machine, and write this page anew:

    scripts/compatibility [STORE...]

To try any other store, such as AWS S3, Google Cloud Storage, Cloudflare R2 or Wasabi (buckets
`test-*` and `shared-*` are made there, and a few hundred objects of some KB, the largest 40 MB):

    S3MOUNT_TEST_ENDPOINT=https://s3.us-east-1.amazonaws.com \\
    S3MOUNT_TEST_ACCESS_KEY=... S3MOUNT_TEST_SECRET_KEY=... scripts/compatibility endpoint

Any part of the test suite runs on another store than SeaweedFS by
`S3MOUNT_TEST_STORE=rustfs scripts/test tests/mount`.
"""
DEFECTS = """\
What was found while daemons and servers were killed, and what s3mount makes of it:

- **RustFS** 1.0.1 goes on listing a directory for ever when a deletion of something in it was cut
  off (the host that asked for it was killed): files of its own stay behind, which no S3 request
  removes. A directory that is listed is looked into before s3mount believes in it, and the listings
  that follow do not show it
  (`mount/test_old_store.py::test_a_directory_that_is_only_listed_is_not_there`).
- **rclone serve s3** 1.75.2 may not list what was put while another request made the same
  directory. What a mount has written itself it knows; other hosts may see it later.
- It also goes on listing what is gone, and keeps what it said it deleted, where a directory is made
  or read anew while something in it is written, until it forgets the directory (five minutes).
  The trials at the mount write alone into a directory first, and write and delete once more what is
  still listed when they have ended
  (`test_s3_probe.py::test_what_was_deleted_in_vain_is_deleted_again`).
"""


def write(path: Path, results: Sequence[Found]) -> None:
    """Write the document about *results*."""
    tried = [one for one in results if not one["why"]]
    parts = [
        INTRODUCTION,
        _when(),
        _table_of_suites(tried),
        *_left_out([one for one in results if one["why"]]),
        "## What the stores can do\n",
        _table_of_capabilities(tried),
        "What s3mount does where a store cannot:\n",
        *(f"- **{SUBJECTS[name][0]}**: the store {WEAKNESSES[name]}." for name in SUBJECTS),
        "\n## Other differences\n",
        _table_of_facts(tried),
        "Names of forms that a store does not keep are written with `%s3esc:` and percent-encoding,"
        " and read back; so every name works on every store.\n",
        DEFECTS,
        *_not_passed(tried),
    ]
    path.write_text("\n".join(parts).rstrip() + "\n")


def _when() -> str:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"Last written on {today} by s3mount {__version__}, Python {platform.python_version()}, "
        f"Linux {platform.release()}.\n"
    )


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join([_row(head), _row("---" for _ in head), *map(_row, rows), ""])


def _table_of_suites(tried: Sequence[Found]) -> str:
    rows = []
    for one in tried:
        row = [TITLES[one["name"]], one["version"]]
        for name in SUITES:
            suite = one["suites"].get(name)
            row.append("not run" if suite is None else _numbers(suite))
        rows.append(row)
    ran = {
        f"{title}: {', '.join(f'`{test}`' for test in one['suites'][name]['tests'])}."
        for name, title in SUITES.items()
        for one in tried
        if one["suites"].get(name, {}).get("tests")
    }
    return "\n".join([_table(["Store", "Version", *SUITES.values()], rows), *sorted(ran), ""])


def _numbers(suite: Found) -> str:
    failed = f"**{len(suite['failed'])} failed**, " if suite["failed"] else ""
    skipped = f", {len(suite['skipped'])} skipped" if suite["skipped"] else ""
    return f"{failed}{suite['passed']} passed{skipped}"


def _left_out(others: Sequence[Found]) -> Iterator[str]:
    if others:
        yield "Not tried:\n"
        yield from (f"- {TITLES[one['name']]}: {one['why']}" for one in others)
        yield ""


def _table_of_capabilities(tried: Sequence[Found]) -> str:
    rows = [
        [subject, *(_word(one["findings"].get(subject)) for one in tried)]
        for subject, _ in SUBJECTS.values()
    ]
    return _table(["", *(TITLES[one["name"]] for one in tried)], rows)


def _word(finding: Found | None) -> str:
    if finding is None:
        return "?"
    return "yes" if finding["level"] == "ok" or finding["found"] == "works" else "**no**"


def _table_of_facts(tried: Sequence[Found]) -> str:
    rows = [
        [subject, *(one["findings"].get(subject, {}).get("found", "?") for one in tried)]
        for subject in FACTS
    ]
    return _table(["", *(TITLES[one["name"]] for one in tried)], rows)


def _not_passed(tried: Sequence[Found]) -> Iterator[str]:
    """All tests that failed or were skipped, by store, with the reason."""
    yield "## What did not pass\n"
    for one in tried:
        for name, title in SUITES.items():
            suite = one["suites"].get(name)
            if suite is None or not (suite["failed"] or suite["skipped"]):
                continue
            yield f"### {TITLES[one['name']]}: {title}\n"
            yield from _reasons("failed", suite["failed"])
            yield from _reasons("skipped", suite["skipped"])
            yield ""


def _reasons(what: str, tests: Mapping[str, str]) -> Iterator[str]:
    """Tests with one reason share a line."""
    by_reason: dict[str, list[str]] = {}
    for test, reason in sorted(tests.items()):
        by_reason.setdefault(reason, []).append(f"`{test}`")
    for reason, names in by_reason.items():
        yield f"- {what}: {', '.join(names)}: {reason.replace('<', '&lt;')}"
