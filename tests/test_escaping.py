"""Keys that a store refuses are written in another way, and every key comes back as it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.s3.escaping import PREFIX, SAMPLES, KeyEscaping

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
    refused = any(has(key) for has in (_refuses(escaping),))
    assert refused or escaping.to_store(shown) == key


def _refuses(escaping: KeyEscaping):
    def refuses(key: str) -> bool:
        *inside, last = key.split("/")
        return any(escaping._is_refused(one, True) for one in inside) or escaping._is_refused(
            last, False
        )

    return refuses


@given(KEYS)
def test_a_store_that_takes_everything_is_told_everything_as_it_is(key: str):
    assert KeyEscaping([]).to_store(key) == key


@pytest.mark.parametrize("form", SAMPLES)
def test_no_refused_form_is_left(form: str):
    escaping = KeyEscaping([form])
    kept = escaping.to_store(f"d/{SAMPLES[form]}")
    assert kept != f"d/{SAMPLES[form]}"
    assert not _refuses(escaping)(kept)


def test_directories_keep_their_slashes():
    escaping = KeyEscaping(SAMPLES)
    assert escaping.to_store("a/b/") == "a/b/"
    assert escaping.to_store("") == ""
    assert escaping.to_store("a\n/") == f"{PREFIX}a%0A/"
    assert escaping.to_store("/") == f"{PREFIX}/"
