"""What options say of the store's features: rules, keys, headers; before any request is made."""

import base64
import json
import secrets
from pathlib import Path

import pytest

from s3mount.cli.arguments import parse_arguments
from s3mount.cli.recovering import choices_of
from s3mount.connecting import feature_choices
from s3mount.errors import Denied, Held, InvalidRequest, MountError
from s3mount.journaling import describe
from s3mount.rules import PARTS, Rules, header_rules, parse_rules
from s3mount.s3.customerkeys import NO_KEY, Keyring, customer_key, read_keys
from s3mount.s3.faults import Refusal, class_of_refusal
from s3mount.s3.features import PLAIN, FeatureChoices, Features
from s3mount.s3.lost import Expectation, is_completed
from s3mount.s3.store import ObjectInfo, PartDone
from s3mount.storing import is_held, lasting, renewed
from s3mount.values import parse_size

CLASS = "x-amz-storage-class"


def is_refused(parse, text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return True
    return False


def classes(text: str) -> Rules:
    return parse_rules(text, str.upper, parse_size)


# -- rules -----------------------------------------------------------------------------------


def test_the_first_rule_that_fits_decides():
    rules = classes("*.log:glacier_ir; archive/*:GLACIER; >1M:STANDARD_IA; <1K:STANDARD; OTHER")
    assert rules.value("a/b.log", 5 << 20) == "GLACIER_IR"
    assert rules.value("archive/x", 0) == "GLACIER"
    assert rules.value("deep/archive/x", 2048) == "OTHER"
    assert rules.value("a", (1 << 20) + 1) == "STANDARD_IA"
    assert rules.value("a", 1 << 20) == "OTHER"
    assert rules.value("a", PARTS) == "STANDARD_IA"
    assert rules.value("a", 1023) == "STANDARD"
    assert rules.value("a", 1024) == "OTHER"
    assert classes("*.log:X").value("a", 0) is None


@pytest.mark.parametrize("text", ["", ";", ":X", ">11M:X", ">much:X"])
def test_rules_that_make_no_sense_are_refused(text: str):
    assert is_refused(classes, text)


def test_header_rules_read_a_file():
    rules = header_rules(
        parse_rules("*.html:no-cache", str),
        ["# a comment", "", "* Cache-Control: max-age=1", "*.css  content-type:  text/css "],
    )
    assert rules.headers("a/b.html") == {"cache-control": "no-cache"}
    assert rules.headers("b.css") == {"cache-control": "max-age=1", "content-type": "text/css"}


@pytest.mark.parametrize(
    "line",
    [
        "*",
        "* Host: x",
        "* x-amz-meta-mode: 1",
        "* x-amz-acl: public-read",
        "* Expires:",
        "* a: b\x01",
    ],
)
def test_headers_that_are_none_of_a_file_are_refused_with_their_line(line: str):
    with pytest.raises(ValueError, match="line 2: "):
        header_rules(Rules(), ["* Expires: 0", line])


# -- headers of requests ------------------------------------------------------------------------


def test_without_options_nothing_is_added():
    assert PLAIN.common == {}
    assert PLAIN.written("a", 5, {"content-type": "x/y"}) == {"content-type": "x/y"}
    assert PLAIN.copied("a", 5, {CLASS: "STANDARD_IA"}) == {CLASS: "STANDARD_IA"}


def test_what_is_written_gets_the_class_of_the_option_and_a_copy_keeps_its_own():
    features = Features(FeatureChoices(storage_class=classes("ONEZONE_IA")))
    assert features.written("a", 5, {CLASS: "STANDARD_IA"})[CLASS] == "ONEZONE_IA"
    assert features.copied("a", 5, {CLASS: "STANDARD_IA"})[CLASS] == "STANDARD_IA"
    assert features.copied("a", 5, {})[CLASS] == "ONEZONE_IA"
    assert CLASS not in features.copied("a", 5, {CLASS: "STANDARD"})


def test_new_bytes_do_not_go_to_sleep_by_themselves():
    assert CLASS not in PLAIN.written("a", 5, {CLASS: "DEEP_ARCHIVE"})
    assert PLAIN.copied("a", 5, {CLASS: "DEEP_ARCHIVE"})[CLASS] == "DEEP_ARCHIVE"
    features = Features(FeatureChoices(storage_class=classes("GLACIER")))
    assert features.written("a", 5, {"x-amz-meta-mode": "33188"})[CLASS] == "GLACIER"
    assert CLASS not in features.written("empty", 0, {})
    assert CLASS not in features.written("link", 5, {"x-amz-meta-mode": "41471"})


def test_an_option_of_encryption_replaces_that_of_the_object():
    kms = lasting(
        {
            "x-amz-server-side-encryption": "aws:kms",
            "x-amz-server-side-encryption-aws-kms-key-id": "old",
        }
    )
    assert PLAIN.copied("a", 0, kms) == kms
    features = Features(FeatureChoices(sse="AES256"))
    assert features.copied("a", 0, kms) == {"x-amz-server-side-encryption": "AES256"}
    keyed = Features(FeatureChoices(customer_keys=(customer_key(bytes(32)),)))
    assert keyed.written("a", 0, kms) == {}
    assert lasting({"x-amz-server-side-encryption": "AES256"}) == {}


def test_what_a_file_keeps_follows_how_it_was_stored_last():
    kept = {"cache-control": "x", CLASS: "GLACIER_IR", "x-amz-tagging-count": "1"}
    assert renewed(kept, {CLASS: "STANDARD_IA"}) == {"cache-control": "x", CLASS: "STANDARD_IA"}
    assert renewed(kept, {}) == {"cache-control": "x"}
    assert lasting({"x-amz-tagging": "a=1&b="}) == {"x-amz-tagging-count": "2"}


def test_tags_of_the_option_join_those_of_the_object():
    features = Features(FeatureChoices(tags="a=1&b=x%20y"))
    assert features.written("k", 0, {})["x-amz-tagging"] == "a=1&b=x%20y"
    assert features.tags_with({"a": "0", "c": "&"}) == "a=1&c=%26&b=x%20y"


# -- customer keys ---------------------------------------------------------------------------


def key_file(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_keys_are_read_and_never_shown(tmp_path: Path):
    lines = [base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(2)]
    keys = read_keys(key_file(tmp_path / "keys", "\n".join(["# new first", *lines, ""])))
    assert [k.headers["x-amz-server-side-encryption-customer-key"] for k in keys] == lines
    assert not any(
        line in repr((keys, Features(FeatureChoices(customer_keys=keys)))) for line in lines
    )


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (base64.b64encode(bytes(32)).decode(), 0o644, "others may read it"),
        (base64.b64encode(bytes(31)).decode(), 0o600, "line 1: not a key of 32 bytes"),
        ("no base64 at all", 0o600, "line 1: not a key of 32 bytes"),
        ("# nothing\n", 0o600, "has no keys"),
    ],
)
def test_keys_that_are_none_are_refused(tmp_path: Path, text: str, mode: int, words: str):
    with pytest.raises(MountError, match=words) as caught:
        read_keys(key_file(tmp_path / "keys", text, mode))
    assert text.strip("# \n") not in str(caught.value)


def test_a_keyring_tries_what_fitted_last_first():
    new, old = customer_key(b"n" * 32), customer_key(b"o" * 32)
    ring = Keyring((new, old))
    assert list(ring.candidates("a")) == [new, old, NO_KEY]
    ring.fits("a", old)
    assert list(ring.candidates("a")) == [old, new, NO_KEY]
    ring.fits("a", new)
    assert ring.guess("a") is new
    assert not Keyring(())


# -- answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        ("AccessDenied", "Access Denied because object protected by object lock.", Held),
        ("AccessDenied", "Object is under GOVERNANCE retention and cannot be deleted", Held),
        ("InvalidRequest", "Object is WORM protected and cannot be overwritten", Held),
        ("AccessDenied", "Access Denied.", Denied),
        ("InvalidRequest", "The object was stored using a form of Server Side Encryption.", Denied),
        ("InvalidRequest", "The encryption parameters are not applicable to this object.", Denied),
        ("InvalidRequest", "Missing required header", InvalidRequest),
    ],
)
def test_refusals_are_told_apart_by_what_they_say(code: str, message: str, kind: type):
    assert class_of_refusal(code, 400, message) is kind
    assert type(Refusal(400, code, message, "", "", True).error("Call key")) is kind


def test_a_hold_ends():
    now = "2026-05-05T10:00:00Z"
    assert is_held({"x-amz-object-lock-legal-hold": "ON"}, now)
    assert is_held({"x-amz-object-lock-retain-until-date": "2026-05-05T10:00:01.5Z"}, now)
    assert not is_held({"x-amz-object-lock-retain-until-date": "2026-05-05T09:59:59Z"}, now)
    assert not is_held({"x-amz-object-lock-legal-hold": "OFF"}, now)


def test_the_etag_of_an_encrypted_object_is_not_taken_for_an_md5():
    expected = Expectation(size=1, metadata={"mtime": "1"}, checksum=None, md5="0" * 32)

    def found(**headers: str) -> ObjectInfo:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return ObjectInfo("k", 1, f'"{"1" * 32}"', 0, {"mtime": "1"}, named)

    assert not expected.met_by(found())
    assert expected.met_by(found(x_amz_server_side_encryption="aws:kms"))
    assert expected.met_by(found(x_amz_server_side_encryption_customer_algorithm="AES256"))
    assert not expected.met_by(found(x_amz_server_side_encryption="AES256"))


@pytest.mark.parametrize(
    ("date", "ours"),
    [
        ("Thu, 01 Jan 1970 00:00:30 GMT", True),
        ("Thu, 01 Jan 1970 01:00:00 GMT", False),
        ("Thu, 01 Jan 99999999999 00:00:30 GMT", False),
        ("", False),
    ],
)
def test_an_upload_is_taken_for_ours_only_by_a_time_that_makes_sense(date: str, ours: bool):
    found = ObjectInfo("k", 1, '"e-1"', 29 * 10**9, {}, {"date": date})
    assert is_completed(found, [PartDone(1, '"encrypted"', None)], age_seconds=5.0) == ours


def test_a_journal_says_how_objects_were_stored_and_no_secret(tmp_path: Path):
    secret = base64.b64encode(b"s" * 32).decode()
    keys = key_file(tmp_path / "keys", secret)
    options = "storage_class=*.a:GLACIER_IR;>1M:STANDARD_IA,tags=a=1,acl=private,requester_pays"
    options += f",sse_c_key_file={keys}"
    config, _ = parse_arguments(["bucket", "/mnt", "-o", options])
    about = json.dumps(describe(config, endpoint="", region="", path_style=True))
    assert secret not in about
    said = choices_of(json.loads(about)["features"])
    assert said == feature_choices(config)
    assert choices_of({}) == FeatureChoices()
