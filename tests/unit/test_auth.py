"""Keys become tenants; nobody else comes in where there are keys."""

import pytest

from sessile.api.auth import Authenticator, check_exposure
from sessile.errors import SettingsError, Unauthorized
from sessile.settings import AuthSettings

KEYS = Authenticator(AuthSettings(api_keys="one,team=two,team=three"))


def test_without_keys_everybody_is_the_default_tenant():
    """A laptop needs no key, and its engines no salt."""
    everybody = Authenticator(AuthSettings())
    assert everybody.tenant(None) == everybody.tenant("Bearer x") == "default"
    assert everybody.salt("default") is None


def test_a_key_names_its_tenant():
    """Keys of one name share a tenant; an unnamed key has one of its own, which is not the key."""
    assert KEYS.tenant("Bearer two") == KEYS.tenant("bearer three") == "team"
    own = KEYS.tenant("Bearer one")
    assert own.startswith("key-") and "one" not in own
    assert KEYS.salt(own) != KEYS.salt("team")


def test_a_key_may_come_in_a_header_of_its_own():
    """Where the protocol has one; a bearer's key goes first."""
    assert KEYS.tenant(None, api_key="two") == KEYS.tenant("Bearer two", api_key="x") == "team"
    with pytest.raises(Unauthorized):
        KEYS.tenant(None, api_key="wrong")


def test_a_browser_gives_its_key_as_a_sub_protocol():
    """It cannot set headers on a WebSocket."""
    assert KEYS.tenant(None, ("realtime", "openai-insecure-api-key.two")) == "team"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic two", "two"])
def test_anything_else_is_refused(header):
    """Absent, malformed or unknown."""
    with pytest.raises(Unauthorized):
        KEYS.tenant(header)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.0.1"])
def test_loopback_needs_no_key(host):
    """Only this machine can reach it."""
    check_exposure(host, AuthSettings())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gpu1"])
def test_a_network_needs_a_key_or_a_word(host):
    """The refusal names both remedies."""
    with pytest.raises(SettingsError, match="API_KEYS.*ALLOW_OPEN"):
        check_exposure(host, AuthSettings())
    check_exposure(host, AuthSettings(allow_open=True))
    check_exposure(host, AuthSettings(api_keys="k"))
