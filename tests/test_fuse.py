"""The kernel's words: what pyfuse3 is made to say."""

import stat

from s3mount.fuse import Unlooked


def test_the_number_of_the_inode_is_found_in_an_entry():
    """Without it the kernel sends a FORGET for every name of a listing."""
    unlooked = Unlooked()
    assert unlooked.number is not None
    first = unlooked.entry(b"a", stat.S_IFREG)
    assert first.st_ino == unlooked.number.value == 0
    assert first.st_mode == stat.S_IFREG
    assert unlooked.entry(b"b", stat.S_IFDIR).st_mode == stat.S_IFDIR
