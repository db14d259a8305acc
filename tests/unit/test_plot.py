"""What is drawn: files that are pictures."""

from pathlib import Path

import pytest

from sessile.errors import SettingsError
from sessile.lab.simulate import Setup, Sweep, points, run_all

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("sweep", [None, Sweep("replicas", (1, 2))])
def test_a_picture_is_written(tmp_path: Path, sweep: Sweep | None) -> None:
    """Bars for one point, curves for several."""
    from sessile.lab.plot import draw

    at = points(Setup(sessions=5), sweep)
    rows = run_all(at, ["session", "oracle"], [1], 1, lambda *done: None)
    path = tmp_path / "out.png"
    draw(rows, sweep, 1.0, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SettingsError, match="gone"):
        draw(rows, sweep, None, tmp_path / "gone" / "out.png")
