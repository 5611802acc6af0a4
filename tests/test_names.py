"""Names and key segments: a bijection, the identity wherever both sides can spell it."""

import errno

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s3mount.errors import PosixError
from s3mount.fs import names

SEGMENTS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="/"), max_size=60),
    st.sampled_from(["", ".", "..", "%s3key:", "%s3key:%2E", "%s3raw:%FF", "%s3file:a", "a\0b"]),
    st.text("%s3keyraw:fil2E0F", max_size=20).map("%s3".__add__),
)
FILE_NAMES = st.one_of(
    st.binary(min_size=1, max_size=60),
    st.sampled_from([b"%s3key:%2E", b"%s3raw:%FF", b"%s3raw:a", b"\xff", b"%s3key:"]),
    st.text("%s3keyraw:2E0F", max_size=20).map(lambda t: b"%s3" + t.encode()),
).filter(lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b".."))


@given(SEGMENTS)
@example("%s3key:%25s3key%3A")
def test_every_segment_has_a_name_that_leads_back_to_it(segment):
    name = names.to_name(segment)
    assert 0 < len(name) <= names.MAX_NAME
    assert b"/" not in name
    assert b"\0" not in name
    assert name not in (b".", b"..")
    if not names.is_long(name):
        assert names.to_segment(name) == segment


@given(FILE_NAMES)
def test_every_name_has_a_segment_that_leads_back_to_it(name):
    if names.split_file(name) is not None or names.is_long(name):
        return
    segment = names.to_segment(name)
    segment.encode()  # S3 takes UTF-8 only
    assert "/" not in segment
    if len(segment.encode()) <= names.MAX_NAME or segment.startswith(names.RAW):
        assert names.to_name(segment) == name


@given(st.text("abcäß %+&=~.-_", min_size=1, max_size=40).filter(lambda t: t not in (".", "..")))
def test_ordinary_names_stand_for_themselves(text):
    assert names.to_name(text) == text.encode()
    assert names.to_segment(text.encode()) == text


def test_names_over_255_bytes_are_refused():
    with pytest.raises(PosixError) as caught:
        names.to_segment(b"x" * 256)
    assert caught.value.errno == errno.ENAMETOOLONG
    assert names.to_segment(b"x" * 255) == "x" * 255


def test_keys_over_1024_bytes_are_refused():
    names.check_key("ä" * 512)
    with pytest.raises(PosixError) as caught:
        names.check_key("ä" * 513)
    assert caught.value.errno == errno.ENAMETOOLONG


def test_segments_over_255_bytes_have_a_name_of_their_digest():
    name = names.to_name("x" * 300)
    assert names.is_long(name)
    assert name != names.to_name("x" * 301)


def test_an_object_beside_a_directory_has_a_name_of_its_own():
    assert names.slot_name(f"{names.BESIDE}blue") == b"%s3file:blue"
    assert names.slot_name("blue") == b"blue"
    assert names.split_file(b"%s3file:blue") == b"blue"
    assert names.split_file(b"blue") is None
    assert names.key_of("a/", f"{names.BESIDE}blue") == names.key_of("a/", "blue") == "a/blue"


@given(SEGMENTS)
@example("y" * 250)
def test_every_object_beside_a_directory_has_a_name_that_leads_back_to_it(segment):
    name = names.slot_name(names.BESIDE + segment)
    assert 0 < len(name) <= names.MAX_NAME
    assert name != names.slot_name(segment)
    plain = names.split_file(name)
    assert plain is not None
    if not names.is_long(plain):
        assert names.to_segment(plain) == segment


def test_markers_of_hadoop_name_a_directory():
    assert names.folder_of("d_$folder$") == "d"
    assert names.folder_of("_$folder$") is None
    assert names.folder_of("d") is None
