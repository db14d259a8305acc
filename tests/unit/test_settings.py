"""The settings: which source wins, and what is said of a mistake."""

from pathlib import Path

import pytest

from sessile.errors import SettingsError
from sessile.settings_load import load, masked


@pytest.fixture
def toml(tmp_path):
    """Writes a TOML file and gives its path."""

    def write(text):
        path = tmp_path / "sessile.toml"
        path.write_text(text)
        return path

    return write


def test_flags_over_environment_over_file_over_default(toml, monkeypatch):
    """Each source wins over those below it, setting by setting, not slice by slice."""
    path = toml('[server]\nport = 1\nhost = "file"\nmax_body_bytes = 5000\n')
    monkeypatch.setenv("SESSILE_SERVER__PORT", "2")
    monkeypatch.setenv("SESSILE_SERVER__HOST", "environment")
    server = load(path, {"server": {"port": 3}}).server
    assert (server.port, server.host, server.max_body_bytes) == (3, "environment", 5000)
    assert load().server.drain_timeout_s == 30.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nprot = 1\n", "server.prot is not a setting"),
        ("[sever]\nport = 1\n", "sever is not a setting"),
        ("[server]\nport = 'x'\n", "server.port"),
        ("[[pool]]\nengine = 'vllm'\n", "needs model"),
        ("[[pool]]\nengine = 'mlx'\n", "pool.0.engine"),
        ("[server\n", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_names_the_setting_and_the_file(toml, text, said):
    """One sentence, before anything is opened."""
    path = toml(text)
    with pytest.raises(SettingsError, match=r"sessile\.toml") as caught:
        load(path)
    assert said in caught.value.message


def test_a_mistake_in_a_flag_or_the_environment_is_named(monkeypatch):
    """The same care for the other sources, and for a file that is not there."""
    with pytest.raises(SettingsError, match=r"server\.port"):
        load(None, {"server": {"port": 99_999}})
    with pytest.raises(SettingsError, match="cannot read"):
        load(Path("/nowhere/sessile.toml"))
    monkeypatch.setenv("SESSILE_SEVER__PORT", "1")
    with pytest.raises(SettingsError, match="SESSILE_SEVER__PORT"):
        load()


def test_keys_come_by_comma_and_are_never_shown(monkeypatch):
    """Secrets are masked wherever the tree is printed."""
    monkeypatch.setenv("SESSILE_AUTH__API_KEYS", "alpha, team=beta")
    tree = load()
    assert [key.get_secret_value() for key in tree.auth.api_keys] == ["alpha", "team=beta"]
    assert "alpha" not in str(masked(tree)) and "beta" not in repr(tree)
    shown = masked(load(None, {"store": {"url": "redis://user:hidden@host:1/0"}}))["store"]["url"]
    assert shown == "redis://user:**********@host:1/0"


def test_a_pool_by_url_without_an_engine_has_whichever_answers(toml):
    """A name is kept; replicas started here are llama.cpp's, unless another is named."""
    file = toml(
        '[[pool]]\nurls = ["http://a"]\n[[pool]]\nurls = ["http://b"]\nengine = "vllm"\n'
        "[[pool]]\nreplicas = 1\n"
    )
    assert [pool.engine for pool in load(file).pool] == ["auto", "vllm", "llamacpp"]


def test_a_model_has_one_release_at_most(tmp_path):
    """Two could not both hold; a standby pool that no swap could name is refused as well."""
    path = tmp_path / "sessile.toml"
    path.write_text('[[release]]\nmodel = "m"\nto = "a"\n[[release]]\nmodel = "m"\nto = "b"\n')
    with pytest.raises(SettingsError, match="two releases are of the same model"):
        load(path)
    path.write_text('[[pool]]\nurls = ["http://h:1"]\nstandby = true\n')
    with pytest.raises(SettingsError, match="a pool on standby needs a name"):
        load(path)
