"""What an engine is doing while it starts, and why it ended, read from the lines that it writes.

Pure, and for people to read: nothing is decided by it.
"""

import re
import signal
from collections.abc import Sequence
from contextlib import suppress

_STAGES = (
    (re.compile(r"^\S+ \S+ server_args=|non-default args:"), "starting its processes"),
    (re.compile(r"Fetching \d+ files|Downloading", re.I), "downloading the model"),
    (re.compile(r"load weight begin|starting to load model|loading (safetensors|pt)", re.I),
     "loading weights"),
    (re.compile(r"checkpoint shards:\s+(\d+)%", re.I), "loading weights"),
    (re.compile(r"(?<!disabling )torch\.?compile|compiling a graph|dynamo bytecode", re.I),
     "compiling"),
    (re.compile(r"kv cache is allocated|memory pool end|gpu kv cache size|cpu kv cache size", re.I),
     "KV memory allocated"),
    (re.compile(r"allocating .* host memory", re.I), "allocating the host cache"),
    (re.compile(r"captur\w+ (batches|cuda graph|cudagraph)", re.I), "capturing graphs"),
    (re.compile(r"application startup complete|uvicorn running|fired up and ready", re.I),
     "warming up"),
)  # fmt: skip
_SHARE = re.compile(r"(\d+)%")
_TELLING = re.compile(
    r"(\w*Error\b|\w*Exception\b|error:|out of memory|already in use|No such file|not supported|"
    r"error loading|failed to load draft|\[type=\w+, input_value=)"
)
_EMPTY_TALK = re.compile(
    r"Traceback|sigquit|Received signal|engine core initialization failed|See root cause|"
    r"see stack trace|check the stack trace|\braise \w+\(|"
    r"File \".*\", line \d+|(?<!Error: )Warning:|warnings\.warn|Ignore import error|"
    r"(prefill|decode) batch, |throughput: |release_session |\"(GET|POST) /",  # its work
    re.I,
)
_STAMP = re.compile(
    r"^(\(\w+[^)]*\) )?(\[[^\]]*\] |(ERROR|WARNING|INFO) [\d-]+ [\d:.]+ (\[[^\]]*\] )?|"
    r"[\d.]+ E +(\w+ +)?(?=\w+: ))?"
)
_INPUT = re.compile(r" \[type=\w+, input_value=.*")  # pydantic shows all that it was given
_MINOR = re.compile(r"^(\(\w+[^)]*\) )?(\[[^\]]*\] )?(WARNING|INFO|DEBUG)\b")
_REMEDIES = (
    (re.compile(r"out of memory|less than requested memory|can't allocate memory", re.I),
     "give it less: fewer replicas a GPU, a lower pool.memory, a shorter context_tokens"),
    (re.compile(r"no available memory|not enough memory|larger than the available|"
                r"no (GPU )?memory for the KV cache", re.I),
     "give its KV memory more: fewer replicas a GPU, a higher pool.memory, a shorter "
     "context_tokens"),
    (re.compile(r"already in use", re.I), "leave --port out of pool.args, or take another"),
    (re.compile(r"unrecognized arguments|invalid choice|expected one argument|ambiguous option"),
     "correct pool.args"),
    (re.compile(r"greater than the derived"), "give a shorter context_tokens"),
    (re.compile(r"SafetensorError|corrupted or incomplete"), "fetch the model's files again"),
)  # fmt: skip
_KILLED = (
    "the kernel does so when the host's memory is used up: fewer replicas, a shorter context_tokens"
)
_MOST_CHARACTERS = 300
_NO_PORT = "error while attempting to bind on address"


def stage(line: str) -> str | None:
    """What this line says that the engine is doing; None if it says nothing of the kind."""
    for pattern, name in _STAGES:
        if pattern.search(line[:_MOST_CHARACTERS]):
            share = _SHARE.search(line) if "shards" in line else None
            return f"{name}, {share[1]} %" if share else name
    return None


def hopeless(line: str) -> bool:
    """Whether the engine will never serve, though it may not end: SGLang's other processes stay
    where its server could not listen."""
    return _NO_PORT in line


def last_words(lines: Sequence[str], most: int = 3) -> str:
    """The lines that tell why an engine ended: its last errors, else its last lines. A warning that
    speaks of errors is none."""
    kept = [line for line in lines if not _EMPTY_TALK.search(line)]
    errors = [line for line in kept if _TELLING.search(line) and not _MINOR.search(line)]
    clean = [_INPUT.sub("", _STAMP.sub("", line)).strip() for line in errors or kept]
    told = list(dict.fromkeys(line[:_MOST_CHARACTERS] for line in clean if line))
    return " | ".join(told[-most:])


def ending(code: int) -> str:
    """How a process ended, by its exit status."""
    if code >= 0:
        return f"ended with {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def remedy(words: str) -> str | None:
    """What to do about it, where that is known. One that was killed and has told of an error has
    mostly killed itself, as SGLang does when one of its processes ends."""
    told = next((told for pattern, told in _REMEDIES if pattern.search(words)), None)
    if told is None and "killed by SIGKILL" in words and not _TELLING.search(words):
        return _KILLED
    return told
