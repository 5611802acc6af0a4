"""Where a bucket is and who asks: the values that describe an endpoint and its credentials."""

from dataclasses import dataclass, field, replace
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """One bucket's address, as the client needs it.

    `host` is what the Host header says (with the bucket in it when `virtual_host`), without
    the port; `root` is the path that every key is appended to, ``/bucket`` in path style.
    `region` is the one that signatures name.  `credential_source` says where the credentials
    came from, for people; `service` is what signatures are for.
    """

    scheme: str
    host: str
    port: int
    root: str
    region: str
    virtual_host: bool = False
    verify_ssl: bool = True
    ca_bundle: str | None = None
    credential_source: str = ""
    service: str = "s3"

    @property
    def secure(self) -> bool:
        """Whether TLS is spoken."""
        return self.scheme == "https"

    @property
    def is_aws(self) -> bool:
        """Whether this is AWS itself."""
        return self.host.endswith((".amazonaws.com", ".amazonaws.com.cn"))

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The endpoint as people write it."""
        return f"{self.scheme}://{self.authority}"

    def in_region(self, region: str) -> "EndpointSettings":
        """The same bucket at the endpoint of another region."""
        host = self.host
        if ".amazonaws.com" in host:
            if f".{self.region}.amazonaws.com" in host:
                host = host.replace(f".{self.region}.amazonaws.com", f".{region}.amazonaws.com")
            else:
                host = host.replace("s3.amazonaws.com", f"s3.{region}.amazonaws.com")
        return replace(self, host=host, region=region)

    def at_host(self, host: str | None) -> "EndpointSettings":
        """The same bucket at another host of AWS; nobody else may send our requests elsewhere."""
        ours = self.host.endswith(".amazonaws.com")
        if host is None or not ours or not host.endswith(".amazonaws.com"):
            return self
        return replace(self, host=host)


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key; what is secret stays out of its repr."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


class CredentialSource(Protocol):
    """Somebody who knows the credentials of the moment."""

    def current(self) -> Credentials | None:
        """The credentials, or None when they have to be refreshed first.  Never blocks."""
        ...

    async def refresh(self, refused: Credentials | None) -> Credentials:
        """Fetch credentials anew, unless *refused* were replaced already.

        Raises `NoCredentials` when there are none to be had.
        """
        ...


@dataclass(frozen=True, slots=True)
class FixedCredentials:
    """Credentials that never change."""

    credentials: Credentials

    def current(self) -> Credentials | None:
        """The credentials."""
        return self.credentials

    async def refresh(self, refused: Credentials | None) -> Credentials:
        """Return the same credentials again: there are no others."""
        return self.credentials
