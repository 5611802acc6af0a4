"""Reading the options of a running mount again: what changes at once, and what has to wait."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields, replace

import trio

from s3mount import logs, notify
from s3mount.cache.metadata import MetaCache
from s3mount.config import Config
from s3mount.errors import MountError, PosixError, StoreError
from s3mount.fuse import FuseOperations

log = logging.getLogger(__name__)

LIVE = ("debug", "log_level", "metadata_ttl", "negative_ttl")


class Reloader:
    """Takes over what may change in the options, and drops what is known of names."""

    def __init__(
        self, read: Callable[[], Config], cache: MetaCache, operations: FuseOperations
    ) -> None:
        self._read = read
        self._cache = cache
        self._operations = operations

    async def reload(self, config: Config, status: str) -> Config:
        """Return the options that hold from now on; *status* is a line for the service manager."""
        notify.reloading()
        config = await self._changed(config)
        logs.set_level("debug" if config.debug else config.log_level)
        self._cache.ttl = self._operations.ttl = config.metadata_ttl
        self._cache.negative_ttl = config.negative_ttl
        try:
            await self._operations.refresh()
        except (PosixError, StoreError) as error:
            log.warning("what was known of names is dropped, but for open files: %s", error)
        log.info("the options are read again, and what was known of names is dropped")
        notify.ready(status)
        return config

    async def _changed(self, config: Config) -> Config:
        try:
            found = await trio.to_thread.run_sync(self._read)
        except (MountError, OSError) as error:
            log.error("the options stay as they are: %s", error)
            return config
        changed = [
            item.name
            for item in fields(Config)
            if getattr(found, item.name) != getattr(config, item.name)
        ]
        if waiting := [name.replace("_", "-") for name in changed if name not in LIVE]:
            log.warning("these options change when it is mounted again: %s", ", ".join(waiting))
        return replace(config, **{name: getattr(found, name) for name in changed if name in LIVE})
