"""What stores answer when they refuse: one table from their codes to our errors."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from s3mount.errors import (
    Archived,
    Changed,
    Damaged,
    Denied,
    Held,
    InvalidName,
    InvalidRange,
    InvalidRequest,
    NoSpace,
    NoSuchBucket,
    NotFound,
    StoreError,
    TooLarge,
    Unavailable,
    Unrecognised,
    Unsupported,
    WrongRegion,
)
from s3mount.s3 import xml
from s3mount.s3.http import Answer

EMPTY_ANSWER = "EmptyAnswer"  # Our word for a 200 without the body that has to say the result.

ERROR_OF_CODE: Mapping[str, type[StoreError]] = {
    "AccessDenied": Denied,
    "AccountProblem": Denied,
    "AllAccessDisabled": Denied,
    "AuthorizationHeaderMalformed": WrongRegion,
    "BadDigest": Damaged,
    "ConditionalRequestConflict": Changed,
    EMPTY_ANSWER: Unsupported,
    "EntityTooLarge": TooLarge,
    "EntityTooSmall": InvalidRequest,
    "ExistingObjectIsDirectory": InvalidName,
    "ExpiredToken": Unrecognised,
    "ExpiredTokenException": Unrecognised,
    "IllegalLocationConstraintException": WrongRegion,
    "IncompleteBody": Damaged,
    "InsufficientStorage": NoSpace,
    "InternalError": Unavailable,
    "InvalidAccessKeyId": Unrecognised,
    "InvalidArgument": InvalidRequest,
    "InvalidBucketName": NoSuchBucket,
    "InvalidChecksum": Damaged,
    "InvalidObjectName": InvalidName,
    "InvalidObjectState": Archived,
    "InvalidRange": InvalidRange,
    "InvalidSecurity": Unrecognised,
    "InvalidToken": Unrecognised,
    "InvalidURI": InvalidName,
    "KMS.DisabledException": Denied,
    "KMS.KMSInvalidStateException": Denied,
    "KMS.NotFoundException": Denied,
    "KeyTooLongError": InvalidName,
    "MethodNotAllowed": Unsupported,
    "NoSuchBucket": NoSuchBucket,
    "NoSuchKey": NotFound,
    "NoSuchUpload": NotFound,
    "NotImplemented": Unsupported,
    "ObjectParentIsFile": InvalidName,
    "ObjectLocked": Held,
    "ObjectNotInActiveTierError": Archived,
    "OperationAborted": Unavailable,
    "PermanentRedirect": WrongRegion,
    "PreconditionFailed": Changed,
    "QuotaExceeded": NoSpace,
    "RequestExpired": Unrecognised,
    "RequestTimeTooSkewed": Unrecognised,
    "RequestTimeout": Unavailable,
    "ServiceUnavailable": Unavailable,
    "SignatureDoesNotMatch": Unrecognised,
    "SlowDown": Unavailable,
    "StorageFull": NoSpace,
    "TemporaryRedirect": WrongRegion,
    "TokenRefreshRequired": Unrecognised,
    "TooManyRequests": Unavailable,
    "XAmzContentChecksumMismatch": Damaged,
    "XAmzContentSHA256Mismatch": Damaged,
    "XMinioAdminBucketQuotaExceeded": NoSpace,
    "XMinioInvalidObjectName": InvalidName,
    "XMinioStorageFull": NoSpace,
}

# A HEAD has no body, so a bare status has to do.
ERROR_OF_STATUS: Mapping[int, type[StoreError]] = {
    301: WrongRegion,
    302: WrongRegion,
    307: WrongRegion,
    308: WrongRegion,
    400: InvalidRequest,
    401: Denied,
    403: Denied,
    404: NotFound,
    405: Unsupported,
    408: Unavailable,
    409: Changed,
    411: InvalidRequest,
    412: Changed,
    413: TooLarge,
    414: InvalidName,
    416: InvalidRange,
    417: InvalidRequest,
    429: Unavailable,
    501: Unsupported,
    507: NoSpace,
}

_TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_TRANSIENT_CODES = frozenset(
    {
        "BandwidthLimitExceeded",
        "ConcurrentModification",
        "ConditionalRequestConflict",
        "InternalError",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)
CREDENTIAL_CODES = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidSecurity",
        "InvalidToken",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)


class Refusal(NamedTuple):
    """An answer that is no success, in the store's own words."""

    status: int
    code: str
    message: str
    request_id: str
    region: str
    speaks_s3: bool

    @property
    def transient(self) -> bool:
        """Whether the same request may well succeed in a moment."""
        if self.code in _TRANSIENT_CODES:
            return True
        return self.status in _TRANSIENT_STATUSES and self.code not in ERROR_OF_CODE

    @property
    def damaged(self) -> bool:
        """Whether the body was damaged on its way, or is not what its checksum says."""
        return ERROR_OF_CODE.get(self.code) is Damaged

    @property
    def about_encryption(self) -> bool:
        """Whether a key is missing or wrong, so that an object cannot be read."""
        return _is_about_encryption(self.code, self.message)

    def error(self, what: str) -> StoreError:
        """Our error for it; *what* names the call and the key."""
        kind = class_of_refusal(self.code, self.status, self.message)
        reason = self.message or self.code or f"the store answered {self.status}"
        details = [self.code or f"status {self.status}"]
        if self.request_id:
            details.append(f"request {self.request_id}")
        error = kind(
            f"{what}: {one_line(reason)} ({', '.join(details)})",
            code=self.code,
            status=self.status,
            request_id=self.request_id,
        )
        if isinstance(error, WrongRegion):
            error.region = self.region
        return error


def error_class(code: str, status: int) -> type[StoreError]:
    """The class of error for a code, or for a status when the code says nothing."""
    known = ERROR_OF_CODE.get(code)
    if known is not None:
        return known
    return ERROR_OF_STATUS.get(status, Unavailable if status >= 500 else InvalidRequest)


# Several stores say by the message only what a general code is about.
_ABOUT_HOLDS = re.compile(r"\bWORM\b|object lock|\bretention\b|legal hold", re.IGNORECASE)
_ABOUT_ENCRYPTION = re.compile("server.side encryption|encryption parameters", re.IGNORECASE)
_GENERAL_CODES = frozenset({"AccessDenied", "InvalidRequest"})


def class_of_refusal(code: str, status: int, message: str) -> type[StoreError]:
    """The class of error for a code and the message that came with it."""
    if code in _GENERAL_CODES and message:
        if _ABOUT_HOLDS.search(message):
            return Held
        if _is_about_encryption(code, message):
            return Denied
    return error_class(code, status)


def _is_about_encryption(code: str, message: str) -> bool:
    """Whether a key is missing or wrong, so that an object cannot be read."""
    return code == "InvalidRequest" and _ABOUT_ENCRYPTION.search(message) is not None


def one_line(text: str) -> str:
    """The beginning of *text* without line ends."""
    return " ".join(text.split())[:200]


def refusal_of(answer: Answer) -> Refusal:
    """Read an answer that is not a success (or says so in its body only)."""
    headers = answer.headers
    body = xml.error_of(answer.body) if answer.body else None
    request_id = headers.get("x-amz-request-id", "")
    region = headers.get("x-amz-bucket-region", "")
    if body is None and answer.status < 300:
        message = "the store answers nothing to this call"
        return Refusal(answer.status, EMPTY_ANSWER, message, request_id, region, True)
    if body is None:
        speaks = "x-amz-request-id" in headers or "x-amz-bucket-region" in headers
        return Refusal(answer.status, "", "", request_id, region, speaks)
    return Refusal(
        answer.status,
        body.code,
        body.message,
        body.request_id or request_id,
        region or body.region,
        True,
    )
