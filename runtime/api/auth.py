"""Who calls: an API key becomes a tenant. Nothing else in Sessile sees a key."""

import hmac
import ipaddress
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Annotated

from fastapi import Header, Request

from sessile.api.request import header
from sessile.errors import SettingsError, Unauthorized
from sessile.settings import AuthSettings

DEFAULT_TENANT = "default"
_SUBPROTOCOL = "openai-insecure-api-key."


class Authenticator:
    """The configured keys and their tenants. Made by `app`; without keys everybody is `default`."""

    def __init__(self, settings: AuthSettings) -> None:
        self._tenants: list[tuple[bytes, str]] = []
        for secret in settings.api_keys:
            name, separator, key = secret.get_secret_value().partition("=")
            if not separator:
                name, key = "", name
            if not key:
                raise SettingsError("auth.api_keys holds an empty key")
            self._tenants.append((key.encode(), name or "key-" + _digest(key, 6)))

    def tenant(
        self,
        authorization: str | None,
        subprotocols: Iterable[str] = (),
        api_key: str | None = None,
    ) -> str:
        """The tenant of a request, from its `Authorization: Bearer` header, else from its
        `x-api-key` where the protocol has one or, for a browser's WebSocket, which cannot set
        headers, from a sub-protocol `openai-insecure-api-key.KEY`.

        Every key is compared, each in constant time. Raises `Unauthorized`.
        """
        if not self._tenants:
            return DEFAULT_TENANT
        given = _bearer(authorization) or api_key
        if given is None:
            for name in subprotocols:
                if name.startswith(_SUBPROTOCOL):
                    given = name.removeprefix(_SUBPROTOCOL)
        if given is None:
            raise Unauthorized("an API key is needed: send the header Authorization: Bearer KEY")
        found = None
        data = given.encode("utf-8", "surrogatepass")
        for key, tenant in self._tenants:
            if hmac.compare_digest(key, data):
                found = tenant
        if found is None:
            raise Unauthorized("the API key is not one of this server's")
        return found

    def tenant_of(self, request: Request) -> str:
        """The tenant of a request whose protocol has no other header for a key."""
        return self.tenant(header(request.scope["headers"], b"authorization"))

    def tenant_of_message(self, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """The tenant of a request in Anthropic's API, which has a header of its own for the key."""
        return self.tenant(header(headers, b"authorization"), api_key=header(headers, b"x-api-key"))

    def told(self, authorization: Annotated[str | None, Header()] = None) -> str:
        """The same, as what routes depend on that FastAPI describes."""
        return self.tenant(authorization)

    def salt(self, tenant: str) -> str | None:
        """The namespace of a tenant's entries in the engines' caches: a cache shared between
        tenants tells one what another has asked (CVE-2025-46570). None where all are one."""
        return _digest(tenant, 16) if self._tenants else None


def check_exposure(host: str, settings: AuthSettings) -> None:
    """Refuse to serve everybody on a network. Raises `SettingsError` with the remedies."""
    if settings.api_keys or settings.allow_open or _loopback(host):
        return
    raise SettingsError(
        f"server.host is {host}, which others can reach, and no API key is set: set "
        "SESSILE_AUTH__API_KEYS=KEY, or SESSILE_AUTH__ALLOW_OPEN=true to serve everybody"
    )


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bearer(authorization: str | None) -> str | None:
    if authorization is None:
        return None
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None


def _digest(text: str, size: int) -> str:
    return blake2b(text.encode(), digest_size=size, person=b"sessile").hexdigest()
