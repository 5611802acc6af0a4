"""Keys that a store refuses are written in another way, and every key comes back as it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.s3.escaping import MARKER, PREFIX, SAMPLES, KeyEscaping, _places

FORMS = st.sets(st.sampled_from(sorted(SAMPLES))).map(sorted)
PIECES = st.sampled_from(
    [
        "/",
        ".",
        "a",
        "\n",
        "\\",
        "\u00fc",
        "%",
        "%0A",
        "%2E",
        "%5C",
        "%25",
        PREFIX,
        "%s3esc",
        "\U0001f600",
    ]
)
KEYS = st.lists(PIECES, max_size=8).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=20
)


@given(FORMS, KEYS)
def test_every_key_comes_back(forms: list[str], key: str):
    escaping = KeyEscaping(forms)
    assert escaping.from_store(escaping.to_store(key)) == key


@given(FORMS, KEYS)
def test_what_others_have_written_is_reached_under_what_it_is_shown_as(forms: list[str], key: str):
    """Unless it has a form that the store refuses: there is no such key then."""
    escaping = KeyEscaping(forms)
    shown = escaping.from_store(key)
    assert is_refused(escaping, key) or escaping.to_store(shown) == key


def is_refused(escaping: KeyEscaping, key: str) -> bool:
    return any(escaping._is_refused(segment, place) for segment, place in _places(key))


@given(FORMS, KEYS, KEYS)
def test_what_is_in_a_directory_begins_as_the_directory(forms: list[str], above: str, key: str):
    escaping = KeyEscaping(forms)
    kept = escaping.to_store(f"{above}/{key}")
    assert kept.startswith(escaping.beginning(f"{above}/"))


@given(KEYS)
def test_a_store_that_takes_everything_is_told_everything_as_it_is(key: str):
    assert KeyEscaping([]).to_store(key) == key


@pytest.mark.parametrize("form", SAMPLES)
def test_no_refused_form_is_left(form: str):
    escaping = KeyEscaping([form])
    kept = escaping.to_store(f"d/{SAMPLES[form]}")
    assert kept != f"d/{SAMPLES[form]}"
    assert not is_refused(escaping, kept)


def test_directories_keep_their_slashes():
    escaping = KeyEscaping(set(SAMPLES) - {MARKER})
    assert escaping.to_store("a/b/") == "a/b/"
    assert escaping.to_store("") == ""
    assert escaping.to_store("a\n/") == f"{PREFIX}a%0A/"
    assert escaping.to_store("/") == f"{PREFIX}/"


def test_where_a_directory_can_be_no_object_its_marker_is_in_it():
    escaping = KeyEscaping([MARKER])
    assert escaping.to_store("a/b/") == f"a/b/{PREFIX}"
    assert escaping.to_store("a/b") == "a/b"
    assert escaping.beginning("a/b/") == "a/b/"
    assert escaping.from_store(f"a/b/{PREFIX}") == "a/b/"
    assert escaping.from_store("a/b/") == "a/b/"
    assert escaping.from_store(PREFIX) == PREFIX, "at the top there is no directory that it marks"
