"""Where the SDK finds the router, and what importing it costs."""

import subprocess
import sys

import pytest

from sessile.client.address import read_address
from sessile.client.calls import read_error, show_session
from sessile.errors import ReplicaRefused, SessionNotFound, SettingsError, Unauthorized


def test_environment_and_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument wins over the environment, that over this machine."""
    monkeypatch.delenv("SESSILE_URL", raising=False)
    monkeypatch.delenv("SESSILE_API_KEY", raising=False)
    assert read_address().url == "http://localhost:8000"
    assert read_address().headers() == {}
    monkeypatch.setenv("SESSILE_URL", "https://example.org/")
    monkeypatch.setenv("SESSILE_API_KEY", "k1")
    assert read_address().websocket_url == "wss://example.org/v1/responses"
    assert read_address().headers() == {"Authorization": "Bearer k1"}
    given = read_address("http://127.0.0.1:9/v1/", "k2")
    assert (given.url, given.api_key) == ("http://127.0.0.1:9", "k2")
    assert "k2" not in repr(given)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """The setting and its value are named."""
    with pytest.raises(SettingsError, match="base_url must be"):
        read_address(url)


def test_answers_that_tell_an_error() -> None:
    """The router's code names the class; anything else still makes one sentence."""
    body = (
        b'{"error":{"message":"no session x","type":"t","param":null,"code":"session_not_found"}}'
    )
    with pytest.raises(SessionNotFound, match="no session x"):
        show_session("x").read(404, body)
    assert isinstance(read_error(401, b"<html>"), Unauthorized)
    assert "502" in str(read_error(502, b"null"))
    with pytest.raises(ReplicaRefused, match="not answered as a Sessile router does"):
        show_session("x").read(200, b"<html>")


def test_ids_are_quoted_in_paths() -> None:
    """A session's id may hold a slash; the path stays one."""
    assert show_session("a/b c").path == "/sessile/v1/sessions/a%2Fb%20c"


def test_importing_the_sdk_pulls_in_no_server_code() -> None:
    """Neither the package alone nor the SDK's names load a server, a store or a validator."""
    code = (
        "import sys, sessile; alone = set(sys.modules)\n"
        "from sessile import Client, AsyncClient, Session, AsyncSession, SessileError\n"
        "heavy = {'fastapi', 'starlette', 'uvicorn', 'redis', 'pydantic', 'typer', 'rich',\n"
        "         'prometheus_client', 'sessile.app', 'sessile.settings', 'sessile.flow'}\n"
        "print(sorted(heavy & set(sys.modules)), sorted({'httpx2', 'websockets'} & alone))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"
