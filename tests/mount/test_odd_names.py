"""Keys that no path can spell: shown under other names, reachable, and in nobody's way.

The moto server takes every key, which other stores refuse.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from tests.mount.conftest import Shared, keys_of
from tests.mount.trees import names
from tests.mounts import Bucket, Mounter
from tests.servers import Server

REFRESH = "user.s3mount.refresh"
LONG, LONGEST = "L" * 300, "K" * 1024
NEARLY = "y" * 250  # Too long only when there is a directory of that name.


def long_name(segment: str) -> str:
    return f"%s3long:{sha256(segment.encode()).hexdigest()}"


# What is in the bucket, and where it is in the mount.
SHOWN = {
    ".": "%s3key:%2E",
    "..": "%s3key:%2E%2E",
    "a/../b": "a/%s3key:%2E%2E/b",
    "a/./b": "a/%s3key:%2E/b",
    "a//b": "a/%s3key:/b",
    "//x": "%s3key:/%s3key:/x",
    "/x": "%s3key:/x",
    "nul\0in it": "%s3key:nul%00in it",
    "blue": "%s3file:blue",
    "blue/x": "blue/x",
    "content/": "content/%s3key:",
    "both/": "both/%s3file:%s3key:",
    "both//x": "both/%s3key:/x",
    "%s3key:": "%s3key:%25s3key:",
    "%s3file:a": "%s3key:%25s3file:a",
    "%s3raw:%FF": "\udcff",
    "%s3key:plain": "%s3key:plain",
    LONG: long_name(LONG),
    f"{LONG}M/inside": f"{long_name(LONG + 'M')}/inside",
    LONGEST: long_name(LONGEST),
    NEARLY: f"%s3file:{long_name(NEARLY)}",
    f"{NEARLY}/inside": f"{NEARLY}/inside",
    "d/" * 510 + "deep": "d/" * 510 + "deep",
    "tab\tcr\rctl\x01": "tab\tcr\rctl\x01",
    "back\\slash": "back\\slash",
    "sp ace ": "sp ace ",
    "hash#?&<>\"'+%20": "hash#?&<>\"'+%20",
    "ümläut/日本": "ümläut/日本",
}


@pytest.fixture(scope="module")
def shared(sharing: Callable) -> Iterator[Shared]:
    """A mount of a bucket on moto."""
    with sharing(server="moto") as shared:
        yield shared


@pytest.fixture
def clean(shared: Shared) -> Iterator[Shared]:
    """The same, with nothing in it."""
    remove_all(shared)
    os.setxattr(shared.root, REFRESH, b"")
    yield shared
    remove_all(shared)
    os.setxattr(shared.root, REFRESH, b"")


def remove_all(shared: Shared) -> None:
    for key in keys_of(shared.bucket, shared.s3):
        shared.s3.delete_object(Bucket=shared.bucket.name, Key=key)


def put_keys(shared: Shared, *keys: str, body: bytes | None = None) -> None:
    """Put objects that hold (the beginning of) their keys, and have the mount notice."""
    client = shared.s3

    def put(key: str) -> None:
        content = key.encode()[:40] if body is None else body
        client.put_object(Bucket=shared.bucket.name, Key=key, Body=content)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, keys))
    os.setxattr(shared.root, REFRESH, b"")


def files(root: Path) -> dict[str, bytes]:
    """All files of a tree by path, read."""
    found = {}
    for directory, below, here in os.walk(root, onerror=fail):
        assert len({*below, *here}) == len(below) + len(here), "a name is there twice"
        for name in here:
            path = Path(directory) / name
            found[str(path.relative_to(root))] = path.read_bytes()
    return found


def fail(error: OSError) -> None:
    """Take no error of os.walk lightly, as it does by default."""
    raise error


def error_of(operation: Callable, *arguments, **how) -> str:
    """The name of the error that an operation ends with."""
    try:
        operation(*arguments, **how)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "none"


# -- everything is shown, and reachable --------------------------------------------------------


def test_all_odd_keys_are_shown_at_once_and_read(clean: Shared):
    put_keys(clean, *SHOWN)
    assert files(clean.root) == {path: key.encode()[:40] for key, path in SHOWN.items()}


@pytest.mark.parametrize("key", SHOWN)
def test_an_odd_key_is_found_without_a_listing(clean: Shared, key: str):
    put_keys(clean, *(other for other in SHOWN if other.startswith(key) or key.startswith(other)))
    assert (clean.root / SHOWN[key]).read_bytes() == key.encode()[:40]


@pytest.mark.parametrize("key", SHOWN)
def test_an_odd_key_can_be_changed_and_deleted(clean: Shared, key: str):
    put_keys(clean, key, *(other for other in SHOWN if other.startswith(f"{key}/")))
    path = clean.root / SHOWN[key]
    with path.open("ab") as file:
        file.write(b"+")
    path.chmod(0o600)
    body = clean.s3.get_object(Bucket=clean.bucket.name, Key=key)["Body"].read()
    assert body == key.encode()[:40] + b"+"
    path.unlink()
    assert key not in keys_of(clean.bucket, clean.s3) or key.endswith("/")


def test_everything_can_be_removed_and_only_that(clean: Shared):
    put_keys(clean, *(f"top/{key}" for key in SHOWN if len(key) < 1000), "topper", "to")
    shutil.rmtree(clean.root / "top")
    assert keys_of(clean.bucket, clean.s3) == ["to", "topper"]
    assert names(clean.root) == ["to", "topper"]


def test_a_tree_of_odd_keys_is_renamed(clean: Shared):
    put_keys(clean, *(f"old/{key}" for key in SHOWN if len(key) < 1000))
    (clean.root / "old").rename(clean.root / "new")
    expected = {f"new/{SHOWN[key]}": f"old/{key}".encode()[:40] for key in SHOWN if len(key) < 1000}
    assert files(clean.root) == expected
    assert all(key.startswith("new/") for key in keys_of(clean.bucket, clean.s3))


def test_an_odd_name_becomes_an_ordinary_one(clean: Shared):
    put_keys(clean, LONG, "..", "blue", "blue/x")
    for number, shown in enumerate((SHOWN[LONG], SHOWN[".."], SHOWN["blue"])):
        (clean.root / shown).rename(clean.root / f"plain{number}")
    assert names(clean.root) == ["blue", "plain0", "plain1", "plain2"]
    assert sorted(keys_of(clean.bucket, clean.s3)) == ["blue/x", "plain0", "plain1", "plain2"]


# -- an object beside a directory --------------------------------------------------------------


def test_an_object_beside_a_directory(clean: Shared):
    put_keys(clean, "blue", "blue/x")
    assert names(clean.root) == ["%s3file:blue", "blue"]
    assert error_of((clean.root / "blue").mkdir) == "EEXIST"
    assert error_of((clean.root / "blue").rmdir) == "ENOTEMPTY"
    (clean.root / "blue" / "x").unlink()
    assert (clean.root / "blue").is_dir()
    (clean.root / "blue").rmdir()
    assert names(clean.root) == ["blue"]
    assert (clean.root / "blue").read_bytes() == b"blue"
    assert keys_of(clean.bucket, clean.s3) == ["blue"]


def test_deleting_the_directory_elsewhere_reveals_the_object(clean: Shared):
    put_keys(clean, "blue", "blue/x")
    assert (clean.root / "blue").is_dir()
    clean.s3.delete_object(Bucket=clean.bucket.name, Key="blue/x")
    os.setxattr(clean.root, REFRESH, b"")
    assert (clean.root / "blue").read_bytes() == b"blue"


def test_deleting_the_object_leaves_the_directory(clean: Shared):
    put_keys(clean, "blue", "blue/x")
    (clean.root / "%s3file:blue").unlink()
    assert files(clean.root) == {"blue/x": b"blue/x"}


def test_an_object_is_put_beside_a_directory_and_taken_away(clean: Shared):
    put_keys(clean, "blue/x", "green")
    (clean.root / "green").rename(clean.root / "%s3file:blue")
    assert keys_of(clean.bucket, clean.s3) == ["blue", "blue/x"]
    (clean.root / "%s3file:blue").rename(clean.root / "green")
    assert keys_of(clean.bucket, clean.s3) == ["blue/x", "green"]
    (clean.root / "%s3file:blue").write_bytes(b"new")
    assert keys_of(clean.bucket, clean.s3) == ["blue", "blue/x", "green"]


def test_an_open_object_is_revealed_with_what_was_written(clean: Shared):
    put_keys(clean, "blue", "blue/x")
    with (clean.root / "%s3file:blue").open("r+b") as file:
        file.write(b"BL")
        file.flush()
        (clean.root / "blue").rename(clean.root / "red")
        file.write(b"UE")
    assert (clean.root / "blue").read_bytes() == b"BLUE"
    assert names(clean.root) == ["blue", "red"]


def test_the_old_name_is_good_for_who_has_listed_before(clean: Shared):
    put_keys(clean, "top/blue", "top/blue/x")
    shutil.rmtree(clean.root / "top" / "blue")
    (clean.root / "top" / "%s3file:blue").unlink()
    (clean.root / "top").rmdir()
    assert keys_of(clean.bucket, clean.s3) == []


def test_names_that_only_show_what_is_cannot_be_made(clean: Shared):
    put_keys(clean, "there/x")
    for name in ("%s3file:nothing", "%s3long:" + "0" * 64, "there/%s3key:"):
        assert error_of((clean.root / name).write_bytes, b"x") == "EINVAL"
        assert error_of((clean.root / "there" / "x").rename, clean.root / name) == "EINVAL"
        assert not (clean.root / name).exists()
    for name in ("%s3file:nothing", "%s3file:there", "%s3long:" + "0" * 64):
        assert error_of((clean.root / name).mkdir) == "EINVAL"
    assert keys_of(clean.bucket, clean.s3) == ["there/x"]


# -- markers -----------------------------------------------------------------------------------


def test_markers_of_hadoop_are_directories(clean: Shared):
    put_keys(clean, "empty_$folder$", "full_$folder$", "full/x", "full/below_$folder$", body=b"")
    assert names(clean.root) == ["empty", "full"]
    assert names(clean.root / "full") == ["below", "x"]
    assert names(clean.root / "empty") == []
    (clean.root / "empty").rmdir()
    (clean.root / "full").rename(clean.root / "moved")
    assert sorted(keys_of(clean.bucket, clean.s3)) == ["moved/below_$folder$", "moved/x"]
    shutil.rmtree(clean.root / "moved")
    assert keys_of(clean.bucket, clean.s3) == []


def test_what_only_looks_like_a_marker_of_hadoop_is_a_file(clean: Shared):
    put_keys(clean, "data_$folder$", "_$folder$")
    assert names(clean.root) == ["_$folder$", "data_$folder$"]


def test_a_marker_with_content_keeps_it(clean: Shared):
    put_keys(clean, "mark/")
    assert files(clean.root) == {"mark/%s3key:": b"mark/"}
    (clean.root / "mark").chmod(0o700)
    descriptor = os.open(clean.root / "mark", os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    found = clean.s3.get_object(Bucket=clean.bucket.name, Key="mark/")
    assert found["Body"].read() == b"mark/"
    assert int(found["Metadata"]["mode"]) & 0o777 == 0o700
    assert error_of((clean.root / "mark").rmdir) == "ENOTEMPTY"
    (clean.root / "mark" / "%s3key:").unlink()
    assert names(clean.root) == ["mark"]
    (clean.root / "mark").rmdir()
    assert keys_of(clean.bucket, clean.s3) == []


# -- names that are made here ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        b"\xff\xfe",
        b"valid \xc3\xbc and not \xff",
        b"%s3raw:%FF",
        b"%s3key:%2E",
        b"%s3",
        b"new\tline\rreturn",
        b"*?[]{}|<>~`$!",
        b"-rf",
        b" ",
        b"n" * 255,
        "日本語".encode(),
    ],
)
def test_any_name_can_be_made_and_comes_back(clean: Shared, name: bytes):
    root = os.fsencode(clean.root)
    path = os.path.join(root, name)  # noqa: PTH118 - a name of bytes
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(b"x")
    os.setxattr(clean.root, REFRESH, b"")
    assert os.listdir(root) == [name]  # noqa: PTH208
    assert Path(os.fsdecode(path)).read_bytes() == b"x"
    (key,) = keys_of(clean.bucket, clean.s3)
    assert key.encode()
    os.unlink(path)  # noqa: PTH108
    assert keys_of(clean.bucket, clean.s3) == []


def test_keys_over_1024_bytes_are_refused(clean: Shared):
    directory = clean.root
    for _ in range(5):
        directory /= "w" * 200
        directory.mkdir()
    (directory / ("f" * 19)).write_bytes(b"x")  # 5 * 201 + 19 = 1024
    assert (directory / ("f" * 19)).read_bytes() == b"x"
    for operation in (Path.touch, Path.mkdir, Path.stat):
        assert error_of(operation, directory / ("f" * 20)) == "ENAMETOOLONG"
    assert error_of((directory / ("d" * 19)).mkdir) == "ENAMETOOLONG"
    longer = directory / ("f" * 20)
    assert error_of((directory / ("f" * 19)).rename, longer) == "ENAMETOOLONG"


def test_the_prefix_of_the_mount_counts(mount, moto, make_bucket):
    bucket = make_bucket(moto)
    prefix = "p" * 800
    made = mount(bucket, prefix=prefix)
    (made.path / ("f" * 223)).write_bytes(b"x")
    assert error_of((made.path / ("f" * 224)).touch) == "ENAMETOOLONG"
    assert keys_of(bucket, moto.client()) == [f"{prefix}/" + "f" * 223]


# -- metadata that make no sense ---------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata",
    [
        {"mode": "999999", "uid": "-1", "gid": "99999999999", "mtime": "1e99"},
        {"mode": "-5", "mtime": "nan", "ctime": "inf", "rdev": "x"},
        {"mode": "16877", "mtime": "9" * 30},  # says that it is a directory
        {"mode": "41471", "uid": "0x7"},  # says that it is a symlink
        {"mode": "24576", "rdev": "-1"},  # says that it is a device
        {"xattr": "%7B%22user.a%22", "mtime": ""},
    ],
)
def test_hostile_metadata_do_not_hide_anything(clean: Shared, metadata: dict[str, str]):
    put_keys(clean, "before", "hostile/", "then")
    clean.s3.put_object(
        Bucket=clean.bucket.name, Key="hostile/file", Body=b"x" * 5000, Metadata=metadata
    )
    clean.s3.put_object(Bucket=clean.bucket.name, Key="hostile/", Body=b"", Metadata=metadata)
    os.setxattr(clean.root, REFRESH, b"")
    assert names(clean.root) == ["before", "hostile", "then"]
    assert (clean.root / "hostile").is_dir()
    assert (clean.root / "hostile" / "file").read_bytes() == b"x" * 5000
    found = (clean.root / "hostile" / "file").stat()
    assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())
    shutil.rmtree(clean.root / "hostile")
    assert names(clean.root) == ["before", "then"]


# -- long listings -----------------------------------------------------------------------------


def test_a_listing_is_complete_and_unique_at_the_borders_of_pages(clean: Shared):
    # In the order of keys, "a", "a-b", "a.b" and "a0" come between or around "a" and "a/".
    plain = [f"{number:04d}" for number in range(2100)]
    tricky = [f"{number:04d}{end}" for number in (330, 331, 659, 660) for end in ("-", ".", "/c")]
    folders = [f"{number:04d}_$folder$" for number in (329, 661)]
    put_keys(clean, *plain, *tricky)
    put_keys(clean, *folders, body=b"")
    found = [entry.name for entry in os.scandir(clean.root)]
    expected = set(plain) | {name for name in tricky if "/" not in name}
    expected |= {f"%s3file:{name}" for name in ("0330", "0331", "0659", "0660", "0329", "0661")}
    assert sorted(found) == sorted(expected)
    for name in ("0329", "0330", "0660", "0661"):
        assert (clean.root / name).is_dir()
        assert (clean.root / f"%s3file:{name}").read_bytes() == name.encode()


# -- names that the store keeps in another way ---------------------------------------------------


def test_who_must_not_write_reads_what_others_have_written(
    mount: Mounter, rustfs: Server, make_bucket: Callable[[Server], Bucket]
):
    """RustFS takes no newline; a mount that may not try it sees that it is refused."""
    bucket = make_bucket(rustfs)
    writer = mount(bucket)
    (writer.path / "new\nline").mkdir()
    (writer.path / "new\nline" / "a\nb").write_bytes(b"1")
    assert keys_of(bucket, rustfs.client(), "%s3esc:new%0Aline/") == [
        *("%s3esc:new%0Aline/", "%s3esc:new%0Aline/%s3esc:a%0Ab")
    ]
    assert writer.umount() == 0
    reader = mount(bucket, "--read-only", name="reader")
    assert (reader.path / "new\nline" / "a\nb").read_bytes() == b"1"
    assert names(reader.path) == ["new\nline"]
    assert names(reader.path / "new\nline") == ["a\nb"]
    assert reader.umount() == 0
