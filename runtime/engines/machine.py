"""Looks at this machine: its GPUs, its memory, and the engines that are installed on it.

An engine is asked for its flags by its own `--help`, which takes it up to half a minute of imports;
so the answer is kept, by interpreter and version.
"""

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path

from sessile.engines.flags import read_help
from sessile.engines.guard import guarded
from sessile.engines.seat import Gpu, Installed, Machine
from sessile.errors import SettingsError
from sessile.models import cache_dir

_CGROUPS = Path("/sys/fs/cgroup")
_LOOK_S = 20.0
_HELP_S = 180.0
_HELP = {
    "sglang": (["-m", "sglang.launch_server", "--help"],),
    "vllm": (
        ["-m", "vllm.entrypoints.cli.main", "serve", "--help=all"],
        ["-m", "vllm.entrypoints.cli.main", "serve", "--help"],  # before it had pages of help
    ),
}
# Prints the version and the package's folder without importing the package.
_LOOK = """
import importlib.util, importlib.metadata as meta, sys
spec = importlib.util.find_spec(sys.argv[1])
if spec is None or spec.origin is None: sys.exit(3)
names = meta.packages_distributions().get(sys.argv[1], [])
print(meta.version(names[0]) if names else "of an unknown version")
print(spec.origin)
"""


def look() -> Machine:
    """This machine's GPUs (those that CUDA_VISIBLE_DEVICES leaves), memory and cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return Machine(gpus=_gpus(), host_bytes=_host_bytes(), cores=cores)


def installed(
    engine: str, python: Path | None, env: Mapping[str, str], tell: Callable[[str], None]
) -> Installed:
    """The engine in the environment of `python`, asked with the variables `env` that it is to run
    with; raises `SettingsError` with the remedy."""
    interpreter = str(python.expanduser().absolute()) if python else sys.executable
    if shutil.which(interpreter) is None:
        raise SettingsError(f"pool.python: {interpreter} is not there, or cannot be run")
    looked = _run([interpreter, "-c", _LOOK, engine], env, _LOOK_S)
    if looked.returncode == 3:
        raise SettingsError(
            f"{engine} is not installed for {interpreter}: install it there, or name the "
            "interpreter that has it by pool.python"
        )
    told = looked.stdout.splitlines()
    if looked.returncode != 0 or len(told) < 2:
        raise SettingsError(f"pool.python: {interpreter} does not run: {_last(looked)}")
    version, origin = told[:2]
    return Installed(
        python=interpreter,
        version=version,
        flags=read_help(_help(engine, interpreter, version, env, tell)),
        binds=engine != "sglang" or _binds(Path(origin).parent),
        maps_tokens=engine == "vllm" and _maps_tokens(Path(origin).parent),
    )


def _help(
    engine: str, interpreter: str, version: str, env: Mapping[str, str],
    tell: Callable[[str], None],
) -> str:  # fmt: skip
    asked_of = "\0".join([interpreter, *(f"{n}={v}" for n, v in sorted(env.items()))])
    key = blake2b(asked_of.encode(), digest_size=6).hexdigest()
    kept = cache_dir() / "engines" / f"{engine}-{version}-{key}.txt"
    if kept.is_file():
        return kept.read_text()
    tell(f"asking {engine} {version} which flags it has (once a version)")
    for arguments in _HELP[engine]:
        asked = _run([interpreter, *arguments], env, _HELP_S)
        if asked.returncode == 0 and "--port" in asked.stdout:
            kept.parent.mkdir(parents=True, exist_ok=True)
            fresh = kept.with_suffix(f".{os.getpid()}")
            fresh.write_text(asked.stdout)
            fresh.replace(kept)
            return asked.stdout
    raise SettingsError(f"{engine} {version} of {interpreter} does not run: {_last(asked)}")


def _run(
    command: list[str], env: Mapping[str, str], within_s: float
) -> subprocess.CompletedProcess[str]:
    interpreter = command[0]
    path = f"{Path(interpreter).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # A page of one width, whatever the terminal.
    whole = {**os.environ, "PATH": path, "COLUMNS": "400", "HF_HUB_OFFLINE": "1", **env}
    try:
        return subprocess.run(
            guarded(command), env=whole, capture_output=True, text=True, timeout=within_s,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise SettingsError(
            f"pool.python: {interpreter} did not answer for {within_s:.0f} s"
        ) from error
    except OSError as error:
        raise SettingsError(f"pool.python: {interpreter}: {error.strerror}") from error


def _last(ended: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (ended.stderr or ended.stdout).splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended with {ended.returncode} and said nothing"


def _binds(package: Path) -> bool:
    return _has_field(package / "srt" / "disaggregation" / "kv_events.py", "bind")


def _maps_tokens(package: Path) -> bool:
    return _has_field(package / "config" / "speculative.py", "use_heterogeneous_vocab")


def _has_field(source: Path, name: str) -> bool:
    """Whether a class there has the field; the engine's help tells of no such."""
    try:
        return f"\n    {name}:" in source.read_text()
    except OSError:
        return False


def _gpus() -> tuple[Gpu, ...]:
    binary = shutil.which("nvidia-smi")
    if binary is None:
        return ()
    query = [binary, "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=_LOOK_S)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return read_gpus(told.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def read_gpus(listed: str, visible: str | None) -> tuple[Gpu, ...]:
    """The GPUs of nvidia-smi's rows (number, UUID, MiB) that `visible` leaves, as
    CUDA_VISIBLE_DEVICES names them; None leaves all. Rows of another kind are passed over."""
    chosen = None if visible is None else [each.strip() for each in visible.split(",")]
    found = []
    for row in csv.reader(listed.splitlines(), skipinitialspace=True):
        if len(row) != 3 or not row[2].isdigit():
            continue
        if chosen is None or row[0] in chosen or row[1] in chosen:
            found.append(Gpu(int(row[0]), int(row[2]) * 2**20))
    return tuple(found)


def _host_bytes() -> int:
    try:
        meminfo = Path("/proc/meminfo").read_text()
    except OSError:
        return 0
    return free_bytes(meminfo, _CGROUPS)


def free_bytes(meminfo: str, cgroups: Path) -> int:
    """What is available by the text of /proc/meminfo, within the limit of the control group (a
    container's) in the folder `cgroups`, of either version."""
    lines = meminfo.splitlines()
    free = next((int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line), 0)
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            text = (cgroups / limit).read_text().strip()
            taken = int((cgroups / used).read_text())
        except (OSError, ValueError):
            continue
        if text.isdigit():
            free = min(free, max(int(text) - taken, 0))
    return free
