"""An engine's command line: which flags its version knows, and ours merged with the user's.

Pure. What a version knows is read from its own `--help`, as argparse prints it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

Flag = tuple[str, str | tuple[str, ...] | None]
"""A flag and its value, or values; None for one that takes none."""

_OPTION = re.compile(r"^  (-{1,2}[a-zA-Z].*)$", re.MULTILINE)
_NAME = re.compile(r"(?:^|,\s+)(--?[A-Za-z][\w-]*)")
_CHOICES = re.compile(r"(--[a-z][\w-]*) \[?\{([^}\s]+)\}")


class Flags(msgspec.Struct, frozen=True):
    """The flags of one version of an engine: the first name of each by all of its names, and the
    values of those that take one of a list."""

    names: Mapping[str, str]
    choices: Mapping[str, frozenset[str]]

    def __contains__(self, flag: str) -> bool:
        return flag in self.names

    def takes(self, flag: str, value: str) -> bool:
        """Whether `flag` is known and may have `value`."""
        return flag in self and value in self.choices.get(self.names[flag], frozenset((value,)))

    def first(self, written: str) -> str:
        """The first name of a flag as somebody wrote it: `--flag=value`, `--flag.key`, with
        underscores, negated, or cut short, all of which argparse or vLLM accept."""
        name = re.split(r"[=.]", written, maxsplit=1)[0]
        name = name.replace("_", "-") if name.startswith("--") else name
        if name in self.names:
            return self.names[name]
        longer = {self.names[known] for known in self.names if known.startswith(name)}
        return longer.pop() if len(longer) == 1 and name.startswith("--") else name


def read_help(text: str) -> Flags:
    """The flags that a `--help` page lists."""
    names: dict[str, str] = {}
    for option in _OPTION.findall(text):
        found = _NAME.findall(re.sub(r"\{[^}]*\}", "", option.split("  ")[0]))
        long = [name for name in found if name.startswith("--")]
        for name in found:
            names.setdefault(name, long[0] if long else name)
    choices = {
        names.get(name, name): frozenset(values.split(","))
        for name, values in _CHOICES.findall(text)
    }
    return Flags(names, choices)


def given(args: Sequence[str], known: Flags) -> dict[str, str]:
    """The flags in `args` by their first names, with the last value of each ("" for none)."""
    found: dict[str, str] = {}
    for place, arg in enumerate(args):
        if not _is_flag(arg):
            continue
        after = args[place + 1 : place + 2]
        value = arg.partition("=")[2] or (after[0] if after and not _is_flag(after[0]) else "")
        found[known.first(arg)] = value
    return found


def merge(ours: Iterable[Flag], args: Sequence[str], known: Flags) -> tuple[list[str], list[str]]:
    """Ours and then `args`, each flag once, the user's winning; and what this version lacks."""
    theirs = given(args, known)
    line: list[str] = []
    lacking: list[str] = []
    for name, value in ours:
        if known.first(name) in theirs:
            continue
        words = (value,) if isinstance(value, str) else value or ()
        if name not in known or not all(known.takes(name, word) for word in words):
            lacking.append(" ".join([name, *words]) if name in known else name)
            continue
        line += [name, *words]
    return [*line, *args], lacking


def _is_flag(arg: str) -> bool:
    return bool(re.match(r"--?[A-Za-z]", arg))
