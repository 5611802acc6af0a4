"""What is where: knowledge ages, our own changes outlive older listings, and all is bounded."""

import pytest

from s3mount.attributes import Attributes
from s3mount.cache.freshness import MAX_CHANGES
from s3mount.cache.metadata import Absent, Entry, MetaCache

ATTRIBUTES = Attributes(0o040700, 1, 2, 3, 4)


class Clock:
    """A clock that stands still."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> MetaCache:
    return MetaCache(ttl=60, negative_ttl=5, max_entries=100, clock=clock)


def listed(etag: str, checked: float) -> Entry:
    return Entry(False, 1, etag, 5, None, checked)


def test_pages_of_a_listing_are_known_before_its_end(cache: MetaCache, clock: Clock):
    cache.put_page("d/", [("a", listed('"1"', 1000)), ("b", listed('"2"', 1000))], 1000)
    assert cache.get("d/", "a") == listed('"1"', 1000)
    assert cache.get("d/", "z") is None, "it may come with the next page"
    assert cache.listing("d/") is None
    cache.put_listing("d/", {"a": listed('"1"', 1000), "b": listed('"2"', 1000)}, 1000)
    assert cache.get("d/", "z") == Absent(1000)
    assert len(cache) == 2


def test_our_own_change_outlives_a_page_that_was_asked_for_before(cache: MetaCache):
    cache.put("d/", "a", Absent(1001))
    cache.put_page("d/", [("a", listed('"1"', 1000))], 1000)
    assert cache.get("d/", "a") == Absent(1001)


def test_a_listing_that_ends_late_brings_nothing_back_that_a_newer_one_lacks(
    cache: MetaCache, clock: Clock
):
    cache.put("d/", "a", Absent(1001))
    clock.now = 1002.0
    cache.put_listing("d/", {"b": listed('"1"', 1002)}, 1002)
    cache.put_page("d/", [("a", listed('"1"', 1000))], 1000)
    cache.put_listing("d/", {"a": listed('"1"', 1000)}, 1000)
    assert cache.get("d/", "a") == Absent(1002)
    assert cache.listing("d/") == {"b": listed('"1"', 1002)}


def test_names_of_ours_are_remembered_by_directory_towards_the_safe_side(cache: MetaCache):
    cache.put_own("d/", "a", listed('"1"', 1000))
    assert cache.freshness.added_at("d/") == 1000
    assert cache.freshness.added_at("e/") < 0
    cache.put("e/", "a", listed('"1"', 1000))
    cache.put_own("e/", "a", listed('"2"', 1000))
    assert cache.freshness.added_at("e/") < 0, "it was there before"
    for number in range(MAX_CHANGES + 1):
        cache.freshness.added(f"{number}/", 1001)
    assert cache.freshness.added_at("d/") == 1001
    assert cache.freshness.added_at("e/") == 1001


def test_a_directory_larger_than_the_cache_is_forgotten_by_halves(cache: MetaCache):
    for number in range(1000):
        cache.put("huge/", f"{number}", listed('"e"', 1000))
        assert len(cache) <= 101
    assert cache.get("huge/", "999") is not None
    assert cache.get("huge/", "0") is None


def test_what_was_learnt_of_a_directory_is_not_renewed_by_listings(
    cache: MetaCache, clock: Clock
):  # fmt: skip
    cache.put("", "d", Entry(True, 0, "", 0, ATTRIBUTES, 1000, True))
    for now in (1030.0, 1055.0):
        clock.now = now
        cache.put_listing("", {"d": Entry(True, 0, "", 0, None, now)}, now)
        assert cache.get("", "d").attributes == ATTRIBUTES
    clock.now = 1061.0
    found = cache.get("", "d")
    assert found.directory
    assert found.attributes is None
    assert found.checked == 1055


@pytest.mark.parametrize("tree", ["d/", "d/e/", ""])
def test_answers_from_before_a_tree_was_dropped_are_not_kept(
    cache: MetaCache, clock: Clock, tree: str
):
    began = clock.now
    clock.now += 1
    cache.drop_tree(tree)
    assert cache.is_overtaken("d/e/", "f", began)
    assert not cache.is_overtaken("d/e/", "f", clock.now), "that was asked after it"
    assert cache.is_overtaken("other/", "f", began) == (not tree)
    cache.put_page("d/e/", [("f", listed('"1"', began))], began)
    cache.put_listing("d/e/", {"f": listed('"1"', began)}, began)
    assert cache.get("d/e/", "f") is None
    cache.put_listing("d/e/", {"f": listed('"2"', clock.now)}, clock.now)
    assert cache.get("d/e/", "f") == listed('"2"', clock.now)


def test_an_answer_from_before_a_name_was_dropped_is_not_kept(cache: MetaCache, clock: Clock):
    began = clock.now
    clock.now += 1
    cache.drop("d/", "f")
    assert cache.is_overtaken("d/", "f", began)
    assert not cache.is_overtaken("d/", "g", began)
    assert not cache.is_overtaken("d/f/", "g", began), "a name is no tree"
    cache.put_listing("d/", {"f": listed('"1"', began), "g": listed('"1"', began)}, began)
    assert cache.get("d/", "f") is None
    assert cache.get("d/", "g") is not None


def test_many_drops_are_forgotten_towards_the_safe_side(cache: MetaCache, clock: Clock):
    for number in range(MAX_CHANGES + 1):
        clock.now += 1
        cache.drop("d/", f"{number}")
    assert cache.is_overtaken("other/", "never dropped", 1000)
    assert not cache.is_overtaken("other/", "never dropped", clock.now)
