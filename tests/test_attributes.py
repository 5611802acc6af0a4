"""File attributes in user metadata: what we write we read, and what others write we understand."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.attributes import META, Attributes, Defaults, decode, encode, format_time, link_target

DEFAULTS = Defaults(uid=1, gid=2, file_mode=0o640, dir_mode=0o750)
BARE = DEFAULTS.file(5)
TYPES = st.sampled_from(
    [stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK]
)
TIMES = st.integers(-(10**18), 4 * 10**18)


def metadata_of(headers: dict[str, str]) -> dict[str, str]:
    return {name.removeprefix(META): value for name, value in headers.items()}


@given(
    TYPES,
    st.integers(0, 0o7777),
    st.integers(0, 0xFFFFFFFE),
    st.integers(0, 0xFFFFFFFE),
    TIMES,
    TIMES,
)
def test_what_is_encoded_is_decoded(kind, mode, uid, gid, mtime_ns, ctime_ns):
    device = 0x801 if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
    attributes = Attributes(kind | mode, uid, gid, mtime_ns, ctime_ns, device)
    assert decode(metadata_of(encode(attributes)), BARE) == attributes


@given(st.dictionaries(st.sampled_from(
    ["mode", "uid", "gid", "mtime", "ctime", "rdev", "file-permissions", "file-mtime",
     "file-owner", "goog-reserved-posix-mode"]), st.text(max_size=50)))  # fmt: skip
def test_nonsense_is_as_good_as_absent(metadata):
    attributes = decode(metadata, BARE)
    assert stat.S_IFMT(attributes.mode) != stat.S_IFDIR
    assert 0 <= attributes.uid <= 0xFFFFFFFE
    assert abs(attributes.mtime_ns) < 1 << 63


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("33188", 0o100644),  # s3fs
        ("100644", 0o100644),  # rclone
        ("0100644", 0o100644),
        ("41471", 0o120777),
        ("420", 0o100644),  # decimal permissions without a type
        ("0644", 0o100644),
        ("999999", BARE.mode),
        ("-1", BARE.mode),
    ],
)
def test_modes_are_decimal_or_octal(text, mode):
    assert decode({"mode": text}, BARE).mode == mode


@pytest.mark.parametrize(
    ("metadata", "mtime_ns"),
    [
        ({"mtime": "1700000000"}, 1_700_000_000_000_000_000),
        ({"mtime": "1700000000.5"}, 1_700_000_000_500_000_000),
        ({"mtime": "1700000000.123456789"}, 1_700_000_000_123_456_789),
        ({"file-mtime": "1700000000123456789ns"}, 1_700_000_000_123_456_789),
        ({"file-mtime": "1700000000123"}, 1_700_000_000_123_000_000),
        ({"goog-reserved-file-mtime": "1700000000"}, 1_700_000_000_000_000_000),
        ({"mtime": "1e99"}, BARE.mtime_ns),
        ({"mtime": "-1.5"}, -1_500_000_000),
    ],
)
def test_times_are_read_in_everybodys_form(metadata, mtime_ns):
    assert decode(metadata, BARE).mtime_ns == mtime_ns


def test_a_marker_stays_a_directory_whatever_it_says():
    bare = DEFAULTS.directory(0)
    assert stat.S_ISDIR(decode({"mode": "33188"}, bare).mode)
    assert decode({"mode": "16877"}, bare).mode == 0o40755


def test_owners_of_other_tools_are_understood():
    attributes = decode({"file-owner": "7", "file-group": "8", "file-permissions": "0100600"}, BARE)
    assert (attributes.uid, attributes.gid, attributes.mode) == (7, 8, 0o100600)


def test_times_have_nine_digits():
    assert format_time(1_000_000_001) == "1.000000001"


@pytest.mark.parametrize(
    ("metadata", "target"),
    [
        ({"--symlink-target": "some/where"}, b"some/where"),
        ({"--symlink-target": "f%C3%BCr%25"}, "für%".encode()),
        ({"gcsfuse_symlink_target": "f%C3%BCr"}, b"f%C3%BCr"),
        ({"gcsfuse_symlink_target": "für"}, "für".encode()),
        ({"--symlink-target": ""}, None),
        ({"--symlink-target": "a%00b"}, None),
        ({"gcsfuse_symlink_target": "a" * 4096}, None),
        ({"mode": "41471"}, None),
    ],
)
def test_targets_of_symlinks_in_metadata(metadata, target):
    assert link_target(metadata) == target
    assert link_target({META + name: value for name, value in metadata.items()}, META) == target


def test_only_an_empty_object_has_its_target_in_its_metadata():
    metadata = {"--symlink-target": "some/where"}
    assert decode(metadata, BARE, 0).mode == stat.S_IFLNK | 0o777
    assert decode(metadata, BARE, 1).mode == BARE.mode
    assert decode({"mode": "4480", **metadata}, BARE, 0).mode == stat.S_IFIFO | 0o600
    assert decode({"--symlink-target": ""}, BARE, 0).mode == BARE.mode
