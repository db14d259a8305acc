"""Where the router is and how a caller shows its key; the one place that reads the environment."""

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sessile.errors import SettingsError

DEFAULT_URL = "http://localhost:8000"


@dataclass(frozen=True)
class Address:
    """A router's base URL without a path's end, and the key for it (None: it asks for none)."""

    url: str
    api_key: str | None = field(default=None, repr=False)

    @property
    def websocket_url(self) -> str:
        """Where the Responses WebSocket is."""
        return "ws" + self.url.removeprefix("http") + "/v1/responses"

    def headers(self) -> dict[str, str]:
        """What every request and handshake carries."""
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}


def read_address(base_url: str | None = None, api_key: str | None = None) -> Address:
    """The address as given, else `SESSILE_URL` and `SESSILE_API_KEY`, else this machine's.

    A URL that ends in `/v1`, as other clients want it, is the same router.
    """
    url = base_url or os.environ.get("SESSILE_URL") or DEFAULT_URL
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise SettingsError(f"base_url must be http://HOST:PORT or https://HOST, not {url!r}")
    key = api_key or os.environ.get("SESSILE_API_KEY") or None
    return Address(url.rstrip("/").removesuffix("/v1").rstrip("/"), key)
