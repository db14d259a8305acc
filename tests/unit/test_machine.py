"""What is found out about an installed engine, without the engine."""

import sys
from pathlib import Path

import pytest

from sessile.engines.machine import free_bytes, installed, read_gpus
from sessile.engines.seat import Gpu

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


ROWS = """0, GPU-aaaa, 81559
1, GPU-bbbb, 81559
2, GPU-cccc, [N/A]
NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.
10, GPU-dddd, 40960
"""


@pytest.mark.parametrize(
    ("visible", "numbers"),
    [
        (None, [0, 1, 10]),
        ("1", [1]),
        ("10, 0", [0, 10]),
        ("GPU-bbbb,GPU-dddd", [1, 10]),
        ("", []),
        ("-1", []),
        ("7", []),
    ],
)
def test_the_gpus_are_those_that_cuda_is_left(visible: str | None, numbers: list[int]):
    """By number or UUID, each by the number of its driver; a row that tells no memory is none."""
    found = read_gpus(ROWS, visible)
    assert [gpu.number for gpu in found] == numbers
    assert set(found) <= {Gpu(0, 81559 << 20), Gpu(1, 81559 << 20), Gpu(10, 40960 << 20)}


@pytest.mark.parametrize(
    ("limit", "used"),
    [
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ],
)
def test_free_memory_is_what_the_container_may_still_take(tmp_path: Path, limit: str, used: str):
    """Of either version of control groups; one without a limit, or none, leaves the machine's."""
    meminfo = "MemTotal: 2000 kB\nMemFree: 10 kB\nMemAvailable:    1000 kB\n"
    assert free_bytes(meminfo, tmp_path) == 1_024_000
    (tmp_path / limit).parent.mkdir(exist_ok=True)
    (tmp_path / used).write_text("300000\n")
    for text, free in (
        ("max", 1_024_000), ("700000", 400_000), ("200000", 0), ("9000000", 1_024_000)
    ):  # fmt: skip
        (tmp_path / limit).write_text(f"{text}\n")
        assert free_bytes(meminfo, tmp_path) == free
    assert free_bytes("no such page", tmp_path) == 0
