"""What is changed of a file that only the index knows: nothing else of its object is lost."""

import os
import stat
import time
from pathlib import Path

from tests.mount.test_index import SLACK, look
from tests.mounts import Bucket, Mounter

SAID = {"Metadata": {"project": "apollo"}, "ContentType": "text/x-log", "CacheControl": "no-cache"}
CHANGES = ("append", "chmod", "chmod and rename", "rename", "rewrite", "truncate")


def change(path: Path) -> Path:
    """Change a file as its name says, and return what it is called then."""
    how = path.name
    if "chmod" in how:
        path.chmod(0o600)
    if how == "append":
        with path.open("ab") as file:
            file.write(b"more")
    if how == "truncate":
        os.truncate(path, 3)
    if how == "rewrite":
        path.write_bytes(b"anew")
    return path.rename(f"{path}d") if "rename" in how else path


def test_files_that_only_the_index_knows_keep_what_they_say(
    bucket: Bucket, s3, mount: Mounter, tmp_path: Path
):
    state = ("--state-dir", str(tmp_path / "state"))
    for name in CHANGES:
        s3.put_object(Bucket=bucket.name, Key=name, Body=b"content", **SAID)
    time.sleep(SLACK)
    first = mount(bucket, *state, name="same")
    assert sorted(look(first.path)) == sorted(CHANGES)
    first.umount()
    second = mount(bucket, *state, name="same")
    assert sorted(look(second.path)) == sorted(CHANGES)
    changed = [change(second.path / name).name for name in CHANGES]
    second.umount()
    for name in changed:
        told = s3.head_object(Bucket=bucket.name, Key=name)
        assert told["Metadata"]["project"] == "apollo", name
        assert (told["ContentType"], told["CacheControl"]) == ("text/x-log", "no-cache"), name
        if "chmod" in name:
            assert stat.S_IMODE(int(told["Metadata"]["mode"])) == 0o600, name
