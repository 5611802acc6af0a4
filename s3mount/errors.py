"""The two vocabularies of failure: what a store answers, and what POSIX says.

The store raises `StoreError` subclasses, the file system raises `PosixError`.  One table,
`ERRNO_OF`, turns the first into the second, and only the FUSE adapter reads it.
"""

import errno
import os
from collections.abc import Mapping


class PosixError(Exception):
    """What POSIX says to a request that cannot be granted.

    Not an `OSError`, because our own files raise those: a cache file that is missing must
    never be reported as the user's file being missing.
    """

    def __init__(self, error_number: int) -> None:
        super().__init__(os.strerror(error_number))
        self.errno = error_number


def disk_failed(error: OSError) -> PosixError:
    """What programs hear of a local disk that fails us: that it is full, or just that it failed.

    That a directory of ours is gone, or that we have too many files open, says nothing of theirs.
    """
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return PosixError(errno.ENOSPC if full else errno.EIO)


class MountError(Exception):
    """Why a mount cannot start: one line for the person who typed the command.

    `exit_code` is one of mount(8): 1 usage or permission, 2 system, 4 bug, 32 mount failure.
    """

    def __init__(self, message: str, exit_code: int = 32) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StoreError(Exception):
    """A store refused a request, or could not be asked.

    `code` is the store's own word for it (``NoSuchKey``), `status` the HTTP status (0: no
    answer), `request_id` what the operator of the store can look up.
    """

    def __init__(
        self, message: str, *, code: str = "", status: int = 0, request_id: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.request_id = request_id


class NotFound(StoreError):
    """There is no such object (or upload)."""


class NoSuchBucket(StoreError):
    """There is no such bucket.

    Never ENOENT while mounted: a backup that hears "no such file" for a whole bucket deletes
    its copy of it.
    """


class Denied(StoreError):
    """The credentials do not allow this, are wrong, or have expired."""


class Unrecognised(Denied):
    """The store does not take the request for ours: a key, a signature or a token is not good.

    It says nothing about what was asked for, not even that it may not be seen.
    """


class NoCredentials(Unrecognised):
    """No credentials were found, or they could not be refreshed."""


class Held(StoreError):
    """Object Lock holds the object: until then it can be neither deleted nor replaced."""


class Changed(StoreError):
    """The object is not, or no longer, the version that the request was about."""


class Exists(StoreError):
    """A conditional creation found an object already there."""


class TooLarge(StoreError):
    """The object would be larger than the store takes."""


class NoSpace(StoreError):
    """The store is full, or a quota is used up."""


class Archived(StoreError):
    """The object sleeps in an archive class and has to be restored first."""


class Asleep(Archived):
    """The same, told before anything was read.

    Some programs take EAGAIN of a read for the end of the file, and none that of an open.
    """


class InvalidRequest(StoreError):
    """The store does not accept an argument of the request."""


class InvalidName(StoreError):
    """The store does not accept this key."""


class Unsupported(StoreError):
    """The store does not know this call."""


class WrongRegion(StoreError):
    """The bucket lives elsewhere; `region` says where, if the store told."""

    region: str = ""


class InvalidRange(StoreError):
    """A range begins at or beyond the end of the object."""


class Unavailable(StoreError):
    """The store could not be reached, or failed, until the time limit was over."""


class Damaged(StoreError):
    """The store has received other bytes than were sent, each time: another time it may not."""


class Corrupt(StoreError):
    """Bytes arrived that are not the bytes that were stored."""


ERRNO_OF: Mapping[type[StoreError], int] = {
    StoreError: errno.EIO,
    NotFound: errno.ENOENT,
    NoSuchBucket: errno.EIO,
    Denied: errno.EACCES,
    Unrecognised: errno.EACCES,
    NoCredentials: errno.EACCES,
    Held: errno.EPERM,
    Changed: errno.ESTALE,
    Exists: errno.EEXIST,
    TooLarge: errno.EFBIG,
    NoSpace: errno.ENOSPC,
    Archived: errno.EIO,
    Asleep: errno.EAGAIN,
    InvalidRequest: errno.EINVAL,
    InvalidName: errno.EINVAL,
    Unsupported: errno.EOPNOTSUPP,
    WrongRegion: errno.EIO,
    InvalidRange: errno.EIO,
    Unavailable: errno.EIO,
    Corrupt: errno.EIO,
    Damaged: errno.EIO,
}
