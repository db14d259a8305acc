"""What is found out about an installed engine, without the engine."""

import sys
from pathlib import Path

import pytest

from sessile.engines.machine import installed

_MAIN = "import sys; print('usage: serve\\n  --port PORT', *sys.argv[2:])"
_PLAIN = "class SpeculativeConfig:\n    model: str | None = None\n"


@pytest.mark.parametrize(
    ("config", "maps"),
    [
        (_PLAIN, False),
        (f"{_PLAIN}    use_heterogeneous_vocab: bool = False\n", True),
        (None, False),
    ],
)
def test_a_vllm_shows_in_its_source_whether_it_maps_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str | None, maps: bool
):
    """Its help lists no fields of `--speculative-config`; a release has them or has not."""
    monkeypatch.setenv("SESSILE_CACHE_DIR", str(tmp_path / "cache"))
    package = tmp_path / "site" / "vllm"
    files = {"__init__": "", "entrypoints/cli/main": _MAIN}
    if config is not None:
        files["config/speculative"] = config
    for name, text in files.items():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    told: list[str] = []
    env = {"PYTHONPATH": str(tmp_path / "site")}
    found = installed("vllm", Path(sys.executable), env, told.append)
    assert "--port" in found.flags and found.maps_tokens is maps
    assert len(told) == 1 and "asking vllm" in told[0]
