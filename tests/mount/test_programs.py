"""Programs that know nothing of S3 do their work on a mount as on a disk."""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from tests.conftest import IN_CI
from tests.mount.programs import has, need, run
from tests.mount.trees import adorn, adorned, differences, grow, names
from tests.mounts import Mounter

TREE_FILES = 5000
LARGE_FILE = 3 << 30 if IN_CI else 512 << 20  # bytes
PATCHED_FILE = 200 << 20
MIB = 1 << 20


# -- whole trees -------------------------------------------------------------------------------


def test_cp_of_a_large_tree_in_and_out_compares_equal(mount: Mounter, bucket, tmp_path):
    original, back = tmp_path / "original", tmp_path / "back"
    original.mkdir()
    grow(original, TREE_FILES)
    first = mount(bucket)
    run("cp", "-r", original, first.path / "tree", timeout=240)
    assert first.umount() == 0
    second = mount(bucket)
    run("cp", "-r", second.path / "tree", back, timeout=240)
    assert differences(original, back) == []
    run("rm", "-r", second.path / "tree", timeout=240)
    assert names(second.path) == []


def test_cp_a_of_a_tree_compares_equal_after_a_remount(mount: Mounter, bucket, tmp_path):
    original, back = tmp_path / "original", tmp_path / "back"
    original.mkdir()
    grow(original, 200, seed=8)
    os.mkfifo(original / "fifo")
    adorn(original, seed=8)
    first = mount(bucket, name="same")
    run("cp", "-a", original, first.path / "tree")
    assert adorned(first.path / "tree") == adorned(original)
    assert first.umount() == 0
    second = mount(bucket, name="same")
    assert adorned(second.path / "tree") == adorned(original)
    sources = (f"{original}/", f"{second.path}/tree/")
    assert run("rsync", "-aX", "--dry-run", "--itemize-changes", *sources) == ""
    run("cp", "-a", second.path / "tree", back)
    assert adorned(back) == adorned(original)


def test_tar_unpacks_and_compares(work: Path, tmp_path):
    original, archive = tmp_path / "original", tmp_path / "tree.tar"
    original.mkdir()
    grow(original, 300, seed=1)
    run("tar", "--format=pax", "-cf", archive, "-C", original, ".")
    run("tar", "-xpf", archive, "-C", work)
    assert differences(original, work, times=True) == []
    # Compares sizes, contents, modes, owners and times with what the archive says.
    assert run("tar", "-df", archive, "-C", work) == ""
    packed = work / "again.tar.gz"
    run("tar", "-czf", packed, "-C", original, ".")
    with tarfile.open(packed) as again:
        assert sum(member.isfile() for member in again) == 300


def test_rsync_transfers_nothing_the_second_time(work: Path, tmp_path):
    original = tmp_path / "original"
    original.mkdir()
    grow(original, 300, seed=2)
    adorn(original, seed=2)
    target = work / "copy"
    command = ("rsync", "-aX", "--itemize-changes", f"{original}/", f"{target}/")
    assert run(*command).count(">f+++") == 300
    assert adorned(target) == adorned(original)
    assert run(*command) == ""
    (original / "new").write_text("new")
    changed = run(*command).splitlines()
    assert [line.split(" ")[-1] for line in changed if line.startswith(">f")] == ["new"]


def test_zip_and_unzip(work: Path, tmp_path):
    original = tmp_path / "original"
    original.mkdir()
    grow(original, 100, seed=3)
    run("zip", "-qry", work / "tree.zip", ".", cwd=original)
    run("unzip", "-q", work / "tree.zip", "-d", work / "unpacked")
    assert differences(original, work / "unpacked") == []
    run("zip", "-T", work / "tree.zip")


def test_du_and_find(work: Path):
    (work / "a").mkdir()
    (work / "a" / "big").write_bytes(b"x" * 3_000_000)
    (work / "a" / "old").write_text("old")
    (work / "reference").write_text("")
    os.utime(work / "a" / "old", (10**9, 10**9))
    os.utime(work / "reference", (11 * 10**8, 11 * 10**8))
    assert run("find", work, "-type", "f", "-newer", work / "reference").split() == [
        str(work / "a" / "big")
    ]
    assert run("find", work, "-size", "+1M", "-printf", "%f") == "big"
    assert 2900 < int(run("du", "-sk", work).split()[0]) < 3200
    assert int(run("du", "-sb", "--apparent-size", work / "a" / "big").split()[0]) == 3_000_000


# -- version control, databases, compilers -----------------------------------------------------


def test_git_commits_clones_and_checks(work: Path):
    original, clone = work / "original", work / "clone"
    run("git", "init", "-q", "-b", "main", original)
    (original / "src").mkdir()
    grow(original / "src", 60, seed=4)
    run("git", "add", "-A", cwd=original)
    run("git", "commit", "-qm", "first", cwd=original)
    for number in range(5):
        (original / "src" / "counter").write_text(f"{number}\n")
        run("git", "add", "-A", cwd=original)
        run("git", "commit", "-qm", f"change {number}", cwd=original)
    run("git", "gc", "-q", cwd=original)
    run("git", "clone", "-q", "--no-hardlinks", original, clone)
    for repository in (original, clone):
        run("git", "fsck", "--strict", cwd=repository)
        assert run("git", "status", "--porcelain", cwd=repository) == ""
    assert run("git", "log", "--format=%s", cwd=clone).split("\n")[0] == "change 4"
    run("git", "checkout", "-q", "-b", "side", "HEAD~3", cwd=clone)
    run("git", "stash", "list", cwd=clone)
    assert (clone / "src" / "counter").read_text() == "1\n"


def test_sqlite_from_python(work: Path):
    with closing(sqlite3.connect(work / "data.db")) as database:
        database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)")
        for number in range(10):
            with database:
                rows = [(None, bytes([number]) * 3000) for _ in range(50)]
                database.executemany("INSERT INTO t VALUES (?, ?)", rows)
        with database:
            database.execute("DELETE FROM t WHERE id % 3 = 0")
        database.execute("VACUUM")
    with closing(sqlite3.connect(work / "data.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT count(*) FROM t").fetchone() == (334,)
    assert names(work) == ["data.db"]


def test_sqlite_from_the_shell(work: Path):
    script = "CREATE TABLE t (n); INSERT INTO t VALUES (1), (2); SELECT sum(n) FROM t;"
    assert run("sqlite3", work / "data.db", stdin=script) == "3\n"
    assert run("sqlite3", work / "data.db", "PRAGMA integrity_check;") == "ok\n"


MAKEFILE = """\
program: main.o libcube.a
\tgcc -o $@ main.o -L. -lcube
libcube.a: cube.o square.o
\tar rcs $@ $^
%.o: %.c numbers.h
\tgcc -c -g -O1 -o $@ $<
"""
SOURCES = {
    "numbers.h": "int square(int), cube(int);\n",
    "square.c": '#include "numbers.h"\nint square(int n) { return n * n; }\n',
    "cube.c": '#include "numbers.h"\nint cube(int n) { return n * square(n); }\n',
    "main.c": '#include <stdio.h>\n#include "numbers.h"\n'
    'int main(void) { printf("%d\\n", square(5) + cube(3)); }\n',
    "Makefile": MAKEFILE,
}


def test_make_and_gcc_build_a_project(work: Path):
    for name, text in SOURCES.items():
        (work / name).write_text(text)
    run("make", "-j2", cwd=work)
    assert run_built(work / "program") == "52\n"
    assert "up to date" in run("make", cwd=work)
    (work / "square.c").write_text('#include "numbers.h"\nint square(int n) { return -n * n; }\n')
    rebuilt = run("make", cwd=work)
    assert "square.c" in rebuilt
    assert "main.c" not in rebuilt


def run_built(program: Path) -> str:
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout


# -- large files -------------------------------------------------------------------------------


def test_a_large_file_has_the_same_digest_after_a_remount(mount: Mounter, bucket, tmp_path):
    if shutil.disk_usage(tmp_path).free < 4 * LARGE_FILE:
        pytest.skip(f"there is no room for a file of {LARGE_FILE >> 20} MiB")
    first = mount(bucket)
    expected = hashlib.sha256()
    command = [need("dd"), f"of={first.path}/large", "bs=1M", "iflag=fullblock", "status=none"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as writer:
        for piece in large_pieces():
            expected.update(piece)
            writer.stdin.write(piece)
        writer.stdin.close()
        assert writer.wait(240) == 0
    assert (first.path / "large").stat().st_size == LARGE_FILE
    assert first.umount() == 0
    second = mount(bucket)
    found = run("sha256sum", second.path / "large", timeout=240).split()[0]
    assert found == expected.hexdigest()


def large_pieces() -> Iterator[bytes]:
    """Pieces of 1 MiB of which no two are the same."""
    noise = Random(5).randbytes(MIB - 8)
    for number in range(LARGE_FILE // MIB):
        yield number.to_bytes(8) + noise


def test_writes_at_random_offsets_are_as_on_a_disk(mount: Mounter, bucket, tmp_path):
    first = mount(bucket)
    local, remote = tmp_path / "local", first.path / "patched"
    block = Random(6).randbytes(PATCHED_FILE // 50)
    for path in (local, remote):
        with path.open("wb") as file:
            for _ in range(50):
                file.write(block)
    for path in (local, remote):
        patch(path)
    assert first.umount() == 0
    second = mount(bucket)
    assert run("cmp", local, second.path / "patched") == ""


def patch(path: Path) -> None:
    """Write at 200 offsets, some close together and some beyond the end, with syncs between."""
    random = Random(7)
    with path.open("r+b") as file:
        for number in range(200):
            file.seek(random.randrange(PATCHED_FILE + MIB))
            file.write(random.randbytes(random.choice((1, 10, 4096, 100_000))))
            if number % 70 == 69:
                file.flush()
                os.fsync(file.fileno())


# -- editors -----------------------------------------------------------------------------------


def test_a_save_by_temporary_file_and_rename(work: Path):
    target = work / "letter.txt"
    for version in range(20):
        temporary = work / ".letter.txt.tmp"
        with temporary.open("w") as file:
            file.write(f"version {version}\n" * 100)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(target)
        assert target.read_text() == f"version {version}\n" * 100
    assert names(work) == ["letter.txt"]


def test_a_save_that_keeps_a_backup(work: Path):
    """As vim does it with backupcopy=no: the old file is renamed, a new one written."""
    target, backup = work / "letter.txt", work / "letter.txt~"
    target.write_text("old")
    target.chmod(0o640)
    for version in range(5):
        target.rename(backup)
        with target.open("x") as file:
            file.write(f"version {version}")
            os.fchmod(file.fileno(), 0o640)
        if version < 4:
            backup.unlink()
    assert (target.read_text(), backup.read_text()) == ("version 4", "version 3")
    assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("how", ["yes", "no", "auto"])
def test_vim_edits(work: Path, how: str):
    (work / "letter.txt").write_text("Dear Bob\n")
    settings = f"set backup backupcopy={how} backupskip= swapfile directory={work}"
    edit = ("-c", settings, "-c", "e letter.txt", "-c", "%s/Bob/Eve/", "-c", "wq")
    run("vim" if has("vim") else "vim.tiny", "-es", "-u", "NONE", "-i", "NONE", *edit, cwd=work)
    assert (work / "letter.txt").read_text() == "Dear Eve\n"
    assert (work / "letter.txt~").read_text() == "Dear Bob\n"
    assert names(work) == ["letter.txt", "letter.txt~"]


def test_sed_edits_in_place(work: Path):
    (work / "letter.txt").write_text("Dear Bob\n" * 1000)
    run("sed", "-i", "s/Bob/Eve/", work / "letter.txt")
    assert (work / "letter.txt").read_text() == "Dear Eve\n" * 1000
    assert names(work) == ["letter.txt"]


# -- many programs at once ---------------------------------------------------------------------


def test_processes_that_append_to_one_file(work: Path):
    script = "for n in $(seq 100); do echo $1 $n; done >> log"
    names = [f"process{number}" for number in range(6)]
    running = [subprocess.Popen([need("sh"), "-c", script, "sh", name], cwd=work) for name in names]
    assert [process.wait(60) for process in running] == [0] * len(names)
    lines = (work / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{name} {n}" for name in names for n in range(1, 101))
    for name in names:
        own = [line for line in lines if line.startswith(f"{name} ")]
        assert own == [f"{name} {n}" for n in range(1, 101)]


def test_processes_that_create_files_in_one_directory(work: Path):
    script = "for n in $(seq 50); do echo $1 > file-$1-$n; done"
    running = [
        subprocess.Popen([need("sh"), "-c", script, "sh", str(number)], cwd=work)
        for number in range(6)
    ]
    assert [process.wait(60) for process in running] == [0] * 6
    assert len(names(work)) == 300
    assert run("sh", "-c", "cat file-3-*", cwd=work) == "3\n" * 50
