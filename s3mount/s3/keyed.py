"""Requests with the customer keys (SSE-C) that fit: which one opens what is found by trying."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from s3mount.errors import Denied, InvalidRequest, StoreError, Unrecognised
from s3mount.s3.customerkeys import NO_KEY, CustomerKey, Keyring
from s3mount.s3.store import ObjectInfo

_T = TypeVar("_T")


class KeyedReader(ABC):
    """Whoever reads objects that a key of the ring may have to open."""

    _keyring: Keyring

    @abstractmethod
    async def head(self, key: str) -> ObjectInfo:
        """Describe the object at *key*."""

    async def _with_key(self, name: str, send: Callable[[CustomerKey], Awaitable[_T]]) -> _T:
        """Send with the customer key that fits *name*, of an object or an upload."""
        if not self._keyring:
            return await send(NO_KEY)
        refusal: StoreError | None = None
        for customer in self._keyring.candidates(name):
            try:
                result = await send(customer)
            except (Denied, InvalidRequest) as error:
                # The refusal of a HEAD has no code; others say when it is about a key.
                if isinstance(error, Unrecognised) or (
                    isinstance(error, InvalidRequest) and error.code
                ):
                    raise
                refusal = refusal or error
                continue
            self._keyring.fits(name, customer)
            return result
        assert refusal is not None
        raise Denied(
            f"{name}: no key of sse-c-key-file opens it, or it is forbidden: {refusal}",
            code=refusal.code,
            status=refusal.status,
            request_id=refusal.request_id,
        ) from refusal

    async def _with_source_key(
        self, source: str, send: Callable[[Mapping[str, str]], Awaitable[_T]]
    ) -> _T:
        """Send a copy with the headers that open its *source*."""
        if not self._keyring:
            return await send({})
        guess = self._keyring.guess(source)
        try:
            return await send(guess.source_headers)
        except Unrecognised:
            raise
        except Denied:
            await self.head(source)  # Finds out which key it is.
            if self._keyring.guess(source) is guess:
                raise
        return await send(self._keyring.guess(source).source_headers)
