"""Changes by others: what events say, which are our own, what a gap means; no store is asked."""

import json
import math
from types import SimpleNamespace
from urllib.parse import quote_plus

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from s3mount.attributes import Attributes
from s3mount.cache.freshness import LONG, MAX_CHANGES, Freshness, Hint
from s3mount.cache.metadata import Absent, Entry, MetaCache
from s3mount.errors import Denied, StoreError, Unavailable, Unrecognised, Unsupported
from s3mount.fs.inodes import Inode, InodeTable
from s3mount.fs.watching import UNWILLING_PAUSE, Watcher
from s3mount.s3.changes import Change, Hear, News
from s3mount.s3.events import MAX_LINE, Event, Lines, Malformed, parse
from s3mount.s3.ownwrites import ECHO, MAX_HELD, OwnWrites

ATTRIBUTES = Attributes(0o100644, 1, 2, 3, 4)
KEYS = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=30)


def record(key: str, name: str = "s3:ObjectCreated:Put", bucket: str = "b", **fields):
    """One record as stores write it; the key is written as it stands."""
    described = {"key": key, "size": 3, "eTag": "abc", **fields.pop("object", {})}
    s3 = {"bucket": {"name": bucket}, "object": described}
    return {"eventName": name, "s3": s3, **fields}


def message(*records) -> bytes:
    return json.dumps({"Records": list(records)}).encode()


# -- events ------------------------------------------------------------------------------------


@given(KEYS)
def test_a_key_is_found_whether_or_not_it_is_escaped(key: str):
    (escaped,) = parse(message(record(quote_plus(key))), "b")
    (plain,) = parse(message(record(key)), "b")
    assert key in escaped.keys
    assert key in plain.keys


@pytest.mark.parametrize(
    ("name", "removed"),
    [
        ("s3:ObjectCreated:Put", False),
        ("ObjectCreated:CompleteMultipartUpload", False),
        ("s3:ObjectCreated:Copy", False),
        ("s3:ObjectRestore:Completed", False),
        ("s3:ObjectRemoved:Delete", True),
        ("ObjectRemoved:DeleteMarkerCreated", True),
        ("s3:LifecycleExpiration:Delete", True),
        ("s3:SomethingNew:Happened", True),
    ],
)
def test_every_kind_of_change_is_heeded(name: str, removed: bool):
    (event,) = parse(message(record("a/b", name)), "b")
    assert (event.keys, event.removed) == (("a/b",), removed)


@pytest.mark.parametrize(
    "text",
    [
        b'{"Records":[]}',
        b'{"Records":null}',
        b'{"Service":"Amazon S3","Event":"s3:TestEvent","Bucket":"b"}',
        message(record("a", "s3:ObjectTagging:Put")),
        message(record("a", "s3:ObjectRemoved:NoOP")),
        message(record("a", bucket="another")),
    ],
)
def test_what_changes_nothing_is_no_event(text: bytes):
    assert parse(text, "b") == []


def test_a_notification_of_sns_is_unwrapped_once():
    inner = message(record("a")).decode()
    wrapped = json.dumps({"Type": "Notification", "Message": inner})
    assert [event.keys for event in parse(wrapped, "b")] == [("a",)]
    with pytest.raises(Malformed):
        parse(json.dumps({"Type": "Notification", "Message": wrapped}), "b")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no JSON",
        b"[" * 100_000,
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"Records":7}',
        b'{"Records":[7]}',
        b'{"Records":[{"eventName":7}]}',
        message(record("")),
        message(record(7)),
        message(record("half a character \ud800")),
    ],
)
def test_what_makes_no_sense_is_malformed_and_nothing_else(text: bytes):
    with pytest.raises(Malformed):
        parse(text, "b")


def test_an_etag_that_nobody_can_ask_for_is_none():
    (event,) = parse(message(record("a", object={"eTag": "\ud800"})), "b")
    assert event.etag == ""


@pytest.mark.parametrize("size", [True, -1, 1 << 63, 10**30, 3.0, "3", None])
def test_a_size_that_no_file_has_is_none(size):
    (event,) = parse(message(record("a", object={"size": size})), "b")
    assert event.size is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "Records",
                        "s3",
                        "object",
                        "bucket",
                        "name",
                        "key",
                        "eventName",
                        "size",
                        "eTag",
                        "responseElements",
                        "Type",
                        "Message",
                        "x",
                    ]
                ),
                inner,
                max_size=5,
            )
        ),
    )
)
def test_no_json_does_harm(value):
    try:
        events = parse(json.dumps(value), "b")
    except Malformed:
        return
    assert all(isinstance(event, Event) for event in events)


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(1, 20), min_size=1))
def test_lines_are_the_same_however_they_arrive(lines: list[bytes], cuts: list[int]):
    lines = [line.replace(b"\n", b"").strip() for line in lines]
    stream = b"".join(line + b"\n" for line in lines)
    found, splitter = [], Lines(limit=100)
    while stream:
        size = cuts[len(stream) % len(cuts)]
        found += splitter.feed(stream[:size])
        stream = stream[size:]
    assert found == [line for line in lines if line]
    assert splitter.dropped == 0


def test_a_line_without_an_end_takes_no_memory_and_is_told():
    lines = Lines()
    for _ in range(20):
        assert lines.feed(b"x" * (MAX_LINE // 4)) == []
        assert len(lines._rest) <= MAX_LINE
    assert lines.dropped == 1
    assert lines.feed(b"the end\n{}\n") == [b"{}"]
    assert lines.feed(b" " * (4 * MAX_LINE)) == []
    assert lines.dropped == 1, "white space says that a server is alive"


# -- our own writes ----------------------------------------------------------------------------


class Clock:
    """A clock that stands still."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def event(key: str = "k", etag: str = "e", request: str = "", *, removed: bool = False) -> Event:
    return Event((key,), removed, etag, 3, request)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def own(clock: Clock) -> OwnWrites:
    return OwnWrites("p/", clock)


def test_the_event_of_a_request_of_ours_is_our_own(own: OwnWrites):
    own.begin("k")
    own.end("k", "request-1", '"e"')
    assert own.sift([event("p/k", request="request-1")] * 2) == News((), 2), "also twice"


def test_what_another_writes_to_the_same_key_is_not_swallowed(own: OwnWrites):
    own.begin("k")
    own.end("k", "request-1", '"e"')
    news = own.sift([event("p/k", request="request-2"), event("p/k", request="request-1")])
    assert [change.keys for change in news.changes] == [("k",)], "even with the same bytes"
    assert news.own == 1


def test_an_event_that_comes_before_the_answer_waits_for_it(own: OwnWrites):
    heard: list[News] = []
    own.tell(heard.append)
    own.begin("k")
    assert own.sift([event("p/k", request="ours"), event("p/k", request="theirs")]) == News()
    own.end("k", "ours", '"e"')
    assert [(len(news.changes), news.own) for news in heard] == [(1, 1)]
    assert heard[0].changes[0].contested, "what we note down next may be older"


def test_a_failed_request_makes_nothing_our_own(own: OwnWrites):
    own.begin("k")
    own.end("k", "", None)
    assert len(own.sift([event("p/k", "", removed=True)]).changes) == 1


def test_without_names_of_requests_each_write_excuses_one_event(own: OwnWrites):
    own.begin("k")
    own.end("k", "", '"e"')
    news = own.sift([event("p/k", "other"), event("p/k"), event("p/k")])
    assert (len(news.changes), news.own) == (2, 1)


def test_deletions_of_many_keys_are_our_own_by_their_request(own: OwnWrites):
    own.begin("")
    assert own.sift([event("p/a", "", "ours", removed=True)]) == News()
    heard: list[News] = []
    own.tell(heard.append)
    own.end("", "ours", "")
    assert [news.own for news in heard] == [1]


def test_keys_outside_of_the_prefix_are_nobodys(own: OwnWrites):
    assert own.sift([event("k"), event("pp/k")]) == News()


def test_a_change_of_what_we_have_just_written_is_contested_for_a_moment(
    own: OwnWrites, clock: Clock
):
    own.begin("k")
    own.end("k", "ours", '"e"')
    assert own.sift([event("p/k", request="x")]).changes[0].contested
    clock.now += 2 * ECHO
    assert not own.sift([event("p/k", request="x")]).changes[0].contested


def test_what_waits_for_an_answer_is_bounded(own: OwnWrites):
    own.begin("k")
    news = own.sift([event("p/k", request=str(number)) for number in range(MAX_HELD + 10)])
    assert len(news.changes) == 10


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=30), st.randoms())
def test_whatever_the_order_all_of_theirs_are_told_and_none_of_ours(writes, random):
    """Writes of us (True) and others; their events come late, early, and in any order."""
    own, heard = OwnWrites("", Clock()), []
    own.tell(lambda news: heard.extend(news.changes))
    steps = []
    for number, (key, ours) in enumerate(writes):
        first, last = sorted((random.random(), random.random()))
        if ours:
            steps.append((first, lambda key=key: own.begin(key)))
            steps.append((last, lambda key=key, n=number: own.end(key, f"r{n}", '"e"')))
        told = event(key, request=f"r{number}")
        when = random.uniform(first, 2.0)  # No event comes before its request.
        steps.append((when, lambda told=told: heard.extend(own.sift([told]).changes)))
    for _, step in sorted(steps, key=lambda step: step[0]):
        step()
    assert len(heard) == sum(not ours for _, ours in writes)


# -- freshness ---------------------------------------------------------------------------------


def known(checked: float, etag: str = '"1"') -> Entry:
    return Entry(False, 1, etag, 5, ATTRIBUTES, checked)


def test_names_count_for_longer_while_somebody_vouches_for_them(clock: Clock):
    cache = MetaCache(60, 5, 100, clock)
    cache.put("", "f", known(clock.now))
    cache.put("", "gone", Absent(clock.now))
    clock.now += 100
    assert cache.get("", "f") is None
    cache.freshness.vouched_until = clock.now + 1
    assert cache.get("", "f") is not None
    assert isinstance(cache.get("", "gone"), Absent)
    clock.now += LONG
    cache.freshness.vouched_until = clock.now + 1
    assert cache.get("", "f") is None, "what a source loses without notice ends some time"


def test_who_wants_no_old_names_gets_none(clock: Clock):
    cache = MetaCache(0.1, 0.1, 100, clock)
    cache.freshness.vouched_until = math.inf
    cache.put("", "f", known(clock.now))
    clock.now += 1
    assert cache.get("", "f") is None


def test_nothing_from_before_the_floor_counts(clock: Clock):
    cache = MetaCache(60, 60, 100, clock)
    cache.put("", "f", known(clock.now))
    cache.put_listing("d/", {"g": known(clock.now)}, clock.now)
    clock.now += 1
    cache.freshness.raise_floor(clock.now)
    assert cache.get("", "f") is None
    assert cache.listing("d/") is None
    cache.put_listing("d/", {"g": known(clock.now - 0.5)}, clock.now - 0.5)
    assert cache.listing("d/") is None, "that listing began before"


def test_a_listing_keeps_no_attributes_of_directories_from_before_the_floor(clock: Clock):
    cache = MetaCache(3600, 60, 100, clock)
    cache.put("", "d", directory(clock.now, marker=True))
    clock.now += 1
    cache.freshness.raise_floor(clock.now)
    clock.now += 1
    cache.put_listing("", {"d": Entry(True, 0, "", 0, None, clock.now)}, clock.now)
    found = cache.get("", "d")
    assert isinstance(found, Entry)
    assert found.attributes is None
    assert found.marker


def test_answers_from_before_a_change_are_not_kept(clock: Clock):
    cache = MetaCache(60, 60, 100, clock)
    began = clock.now
    clock.now += 1
    cache.changed("d/", "f", Hint('"2"', 2))
    assert cache.is_outdated("d/", "f", began)
    assert not cache.is_outdated("d/", "other", began)
    assert not cache.is_outdated("d/", "f", clock.now)
    assert cache.freshness.hint("d/", "f") == Hint('"2"', 2)
    cache.put_page("d/", [("f", known(began)), ("g", known(began))], began)
    cache.put_listing("d/", {"f": known(began), "g": known(began)}, began)
    assert cache.get("d/", "f") is None
    assert cache.get("d/", "g") is not None
    assert cache.listing("d/") is None, "one of its names is not known"
    clock.now += 1
    cache.put_listing("d/", {"f": known(clock.now)}, clock.now)
    assert cache.listing("d/") is not None


def test_a_flood_of_changes_is_forgotten_towards_the_safe_side():
    freshness = Freshness()
    for number in range(MAX_CHANGES + 5):
        freshness.changed("d/", str(number), 10.0 + number, None)
    assert len(freshness._changes) == MAX_CHANGES
    assert freshness.is_outdated("x/", "never changed", 10.0)
    assert freshness.outdated_under("x/", 10.0) is None
    assert not freshness.is_outdated("x/", "never changed", 20.0)


# -- the gap machine ---------------------------------------------------------------------------


class Script:
    """A source that does what it is told: seconds pass, news are heard, an error ends a stream."""

    name = "listen"
    lease = 2.5

    def __init__(self, *streams, gapless: bool = False) -> None:
        self.streams = list(streams)
        self.gapless = gapless
        self.asked: list[float] = []

    async def follow(self, hear: Hear) -> None:
        self.asked.append(trio.current_time())
        for step in self.streams.pop(0) if self.streams else [Unavailable("away")]:
            if isinstance(step, StoreError):
                raise step
            if isinstance(step, News):
                hear(step)
            else:
                await trio.sleep(step)


class Kernel:
    """Takes down what the kernel would be told."""

    def __init__(self) -> None:
        self.forgotten: list[Inode] = []
        self.sweeps = 0

    def forget(self, inodes) -> None:
        self.forgotten += inodes

    def forget_all(self, inodes) -> None:
        self.sweeps += 1
        inodes()


def watcher(*streams, insistent: bool = False, gapless: bool = False) -> Watcher:
    """A watcher over names that nobody serves; its script and kernel hang on it."""
    cache = MetaCache(60, 60, 1000, trio.current_time)
    namespace = SimpleNamespace(
        cache=cache,
        folders=False,
        index=SimpleNamespace(forget_key=lambda key: None),
        changed=cache.changed,
        forget_listings=lambda: None,
    )
    filesystem = SimpleNamespace(cache=cache, namespace=namespace, inodes=InodeTable(), files={})
    source, kernel = Script(*streams, gapless=gapless), Kernel()
    made = Watcher(filesystem, source, kernel, insistent=insistent)
    made.test = SimpleNamespace(fs=filesystem, source=source, kernel=kernel)
    return made


async def test_what_was_learnt_before_the_stream_does_not_outlive_its_beginning(autojump_clock):
    made = watcher([1.0, News(), *[1.0, News()] * 100])
    cache = made.test.fs.cache
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        cache.put("", "f", known(trio.current_time()))
        await trio.sleep(1.5)
        assert cache.get("", "f") is None
        assert made.watched.state == "listening"
        assert made.watched.gaps == 0
        cache.put("", "f", known(trio.current_time()))
        await trio.sleep(90)
        assert cache.get("", "f") is not None, "longer than the time to live"
        nursery.cancel_scope.cancel()


async def test_a_gap_drops_what_may_be_stale_and_names_age_while_it_lasts(autojump_clock):
    made = watcher([News(), 70, News(), Unavailable("cut")], [5.0, News(), 100])
    cache, kernel = made.test.fs.cache, made.test.kernel
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        await trio.sleep(0.1)
        cache.put("", "old", known(trio.current_time()))
        await trio.sleep(69)
        cache.put("", "new", known(trio.current_time()))
        sweeps = kernel.sweeps
        await trio.sleep(1.0)
        assert made.watched.state == "lost"
        assert kernel.sweeps == sweeps + 1, "the kernel has been told to count on less"
        assert cache.get("", "old") is None, "its time to live was over before"
        assert cache.get("", "new") is not None
        await trio.sleep(8)
        assert made.watched.state == "listening"
        assert made.watched.gaps == 1
        assert cache.get("", "new") is None
        assert kernel.sweeps == sweeps + 2
        nursery.cancel_scope.cancel()


async def test_a_store_that_does_not_know_how_is_asked_once(autojump_clock):
    made = watcher([Unsupported("no listen API")])
    await made.run()
    assert (made.watched.state, made.watched.error) == ("off", "no listen API")
    assert len(made.test.source.asked) == 1


async def test_a_store_that_never_says_anything_is_given_up(autojump_clock):
    made = watcher()
    await made.run()
    assert made.watched.state == "off"
    assert len(made.test.source.asked) == 3


async def test_who_insists_is_told_and_asked_again(autojump_clock, expect_log):
    expect_log("are not heard of: not allowed")
    made = watcher([Denied("not allowed")], [News(), 1000], insistent=True)
    with trio.move_on_after(UNWILLING_PAUSE + 10):
        await made.run()
    assert made.watched.state == "listening"


async def test_expired_credentials_are_no_reason_to_give_up(autojump_clock):
    made = watcher([Unrecognised("expired")], [News(), 1000])
    with trio.move_on_after(60):
        await made.run()
    assert made.watched.state == "listening"


async def test_attempts_after_a_loss_go_on_with_pauses_that_are_bounded(autojump_clock):
    made = watcher([News(), 1, Unavailable("cut")])
    with trio.move_on_after(600):
        await made.run()
    asked = made.test.source.asked
    assert 20 < len(asked) < 60
    assert asked[2] - asked[0] < 4
    assert made.watched.gaps == 1, "one loss, however many attempts"


async def test_a_queue_that_keeps_everything_has_a_gap_only_at_the_start(autojump_clock):
    made = watcher([News(), 5, Unavailable("away")], [News(), 100], gapless=True)
    cache = made.test.fs.cache
    with trio.move_on_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            await trio.sleep(3)
            cache.put("", "f", known(trio.current_time()))
            await trio.sleep_forever()
    assert cache.get("", "f") is not None


async def test_news_that_make_no_sense_are_counted_and_are_a_gap(autojump_clock):
    made = watcher([News(), 10, *[News(malformed=1), 0.1] * 10, 100])
    cache = made.test.fs.cache
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        await trio.sleep(9)
        cache.put("", "f", known(trio.current_time()))
        await trio.sleep(5)
        assert made.watched.malformed == 10
        assert made.watched.gaps == 1, "not one for each of them"
        assert cache.get("", "f") is None
        nursery.cancel_scope.cancel()


# -- what a change means -----------------------------------------------------------------------


def change(key: str, *, removed: bool = False) -> Change:
    return Change((key,), removed, "" if removed else '"2"', None if removed else 7)


def directory(checked: float, *, marker: bool) -> Entry:
    return Entry(True, 0, "", 0, ATTRIBUTES, checked, marker)


async def test_a_change_drops_its_name_and_tells_the_kernel_of_its_inode(autojump_clock):
    made = watcher()
    fs, kernel, now = made.test.fs, made.test.kernel, trio.current_time()
    fs.cache.put("", "d", directory(now, marker=True))
    fs.cache.put("d/", "f", known(now))
    fs.cache.put("d/", "g", known(now))
    folder = fs.inodes.obtain(fs.inodes.root, b"d", "d", directory=True)
    file = fs.inodes.obtain(folder, b"f", "f", directory=False)
    made.heed(change("d/f"))
    assert fs.cache.get("d/", "f") is None
    assert fs.cache.get("d/", "g") is not None
    assert fs.cache.get("", "d") is not None
    assert fs.cache.freshness.hint("d/", "f") == Hint('"2"', 7)
    assert kernel.forgotten == [file]


async def test_a_file_that_is_not_saved_yet_is_left_alone(autojump_clock):
    made = watcher()
    fs, kernel = made.test.fs, made.test.kernel
    file = fs.inodes.obtain(fs.inodes.root, b"f", "f", directory=False)
    fs.files[file] = SimpleNamespace(dirty=True)
    made.heed(change("f"))
    assert kernel.forgotten == []


async def test_the_last_file_takes_directories_along_that_have_no_marker(autojump_clock):
    made = watcher()
    cache, now = made.test.fs.cache, trio.current_time()
    cache.put("", "a", directory(now, marker=True))
    cache.put("a/", "b", directory(now, marker=False))
    cache.put("a/b/", "c", known(now))
    made.heed(change("a/b/c", removed=True))
    assert cache.get("a/", "b") is None
    assert cache.get("", "a") is not None
    made.heed(change("a/", removed=True))
    assert cache.get("", "a") is None, "that was its marker"


async def test_a_new_file_brings_its_directories(autojump_clock):
    made = watcher()
    cache, now = made.test.fs.cache, trio.current_time()
    cache.put("", "a", Absent(now))
    cache.put_listing("", {}, now)
    made.heed(change("a/b/c"))
    assert cache.get("", "a") is None
    assert cache.listing("") is None


@given(KEYS, st.booleans())
async def test_every_key_can_be_heeded(key: str, removed: bool):
    made = watcher()
    made.heed(change(key, removed=removed))
    prefix, slash, segment = key.rpartition("/")
    assert made.test.fs.cache.get(prefix + slash, segment) is None


async def test_a_contested_change_is_heeded_once_more(autojump_clock):
    made = watcher([News(), 1, News((change("f")._replace(contested=True),)), 100])
    cache = made.test.fs.cache
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        await trio.sleep(1.1)
        cache.put("", "f", known(trio.current_time()))  # What we had written a moment before.
        await trio.sleep(1)
        assert cache.get("", "f") is None
        nursery.cancel_scope.cancel()
