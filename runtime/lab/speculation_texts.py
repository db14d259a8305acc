"""What the speculation benchmark asks for: conversations that make a small instruct model write
text of one kind.

How well a draft is accepted depends on how much of the answer was said before, so a kind is told
by that: an edit says the file again but for a name, records repeat the form of those before them,
code and prose repeat little. What was said before counts for all engines, what the prompt holds
not for SGLang's n-grams, which are of answers only (0.5.17). All is drawn from a seed, so that two
engines are asked for the same.
"""

import json
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from random import Random
from typing import Any

import msgspec

_THINGS = (
    "order", "invoice", "parcel", "ticket", "device", "sensor", "author", "recipe", "route",
    "booking", "account", "message", "ledger", "camera", "student", "voucher", "vessel", "tenant",
)  # fmt: skip
_VERBS = ("load", "fetch", "read", "collect", "gather", "find", "select", "receive")
_NAMES = (
    "Ada", "Bo", "Carla", "Dmitri", "Elif", "Femi", "Grete", "Hugo", "Ines", "Jonas", "Kofi",
    "Lena", "Marta", "Nils", "Olga", "Pablo", "Rosa", "Sven", "Tove", "Yusuf",
)  # fmt: skip
_TOWNS = ("Oslo", "Porto", "Turin", "Ghent", "Lyon", "Gdansk", "Cork", "Malmo", "Basel", "Split")
_TRADES = ("baker", "pilot", "nurse", "welder", "judge", "tailor", "farmer", "cook", "clerk")
_PLACES = (
    "a lighthouse in winter", "a market in the desert", "a train that never stops",
    "a village under the sea", "a library without doors", "an island of clocks",
    "a city built on bridges", "a garden on the moon", "an inn at the end of the road",
)  # fmt: skip
_FINDS = (
    "finds a letter without a sender", "hears a song that nobody else hears",
    "loses the key to the house", "meets a stranger of the same name",
    "is given a map with one town too many", "wakes up a day too early",
)  # fmt: skip
_TASKS = (
    "merges two sorted lists", "finds the longest common prefix of strings",
    "parses a date such as 2024-05-01", "counts the words of a text file",
    "checks whether brackets are balanced", "converts Roman numerals to numbers",
    "finds the shortest path in a grid", "removes duplicates but keeps the order",
    "computes the moving average of a series", "compresses a string by run lengths",
    "evaluates an arithmetic expression", "groups words that are anagrams",
)  # fmt: skip
_FUNCTION = '''def {verb}_{thing}s(store, limit={limit}):
    """Return at most limit {thing}s of the store."""
    rows = store.query("{thing}s", limit)
    return [clean_{thing}(row) for row in rows]
'''
_RENAMES = (
    ("store", "archive"), ("limit", "count"), ("rows", "entries"),
    ("archive", "store"), ("count", "limit"), ("entries", "rows"),
)  # fmt: skip
# NOTE: fewer than they have: small models leave some out, and what they say then is of no kind.
_FUNCTION_TOKENS = 35
_RECORD_TOKENS = 25


class Script(msgspec.Struct, frozen=True):
    """A conversation: an exchange that stands `before` it, as an example of what is wanted, and
    what the user says in each turn. With `answers` the next prompt holds those, whatever was
    answered."""

    before: list[dict[str, str]]
    asked: list[str]
    answers: list[str] = []


def conversation(kind: str, turns: int, tokens: int, random: Random) -> Script:
    """One of that kind; each answer takes about `tokens` tokens."""
    return KINDS[kind](turns, tokens, random)


def _edits(turns: int, tokens: int, random: Random) -> Script:
    """A file to be said again with one name changed, then with another; a small one is shown
    edited. It is given in each turn as it should be by then, whatever the model made of it."""
    shown = _file(1, random)
    old, new = _RENAMES[0]
    before = _exchange(_edit(shown, old, new), f"```python\n{shown.replace(old, new)}```")
    file = _file(tokens // _FUNCTION_TOKENS + 1, random)
    asked = []
    for old, new in islice(cycle(_RENAMES), turns):
        asked.append(_edit(file, old, new))
        file = file.replace(old, new)
    return Script(before, asked)


def _edit(file: str, old: str, new: str) -> str:
    return f"```python\n{file}```\nWrite this whole file again, with `{new}` for `{old}`."


def _file(functions: int, random: Random) -> str:
    things = islice(cycle(random.sample(_THINGS, len(_THINGS))), functions)
    return "\n".join(
        _FUNCTION.format(verb=random.choice(_VERBS), thing=thing, limit=random.randrange(10, 99))
        for thing in things
    )


def _json(turns: int, tokens: int, random: Random) -> Script:
    """Records of one form; two are shown."""
    shown = [_record(random) for _ in range(2)]
    lines = "\n".join(json.dumps(record) for record in shown)
    return Script(
        before=_exchange(_people(shown), f"```json\n{lines}\n```"),
        asked=[
            _people([_record(random) for _ in range(tokens // _RECORD_TOKENS + 1)])
            for _ in range(turns)
        ],
    )


def _people(people: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"- {each['name']}, {each['trade']} in {each['town']}, {each['age']} years old"
        for each in people
    ]
    return "\n".join(["Write each of these people as a JSON object:", *lines])


def _record(random: Random) -> dict[str, Any]:
    return {
        "name": random.choice(_NAMES), "trade": random.choice(_TRADES),
        "town": random.choice(_TOWNS), "age": random.randrange(20, 70), "active": True,
    }  # fmt: skip


def _exchange(asked: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _code(turns: int, tokens: int, random: Random) -> Script:
    """A function that is not shown, and what belongs to it."""
    follow = (
        "Write unit tests for it with pytest.",
        "Write a command line around it with argparse.",
        "Write it again without any import, and explain each line in a comment.",
    )
    first = f"Write a Python function that {random.choice(_TASKS)}, and one that {{}}."
    other = random.choice(_TASKS)
    return Script([], [first.format(other), *islice(cycle(follow), turns - 1)])


def _prose(turns: int, tokens: int, random: Random) -> Script:
    """A story, and how it goes on."""
    name, other = random.sample(_NAMES, 2)
    follow = (
        f"Go on with the story. {other} comes, who {random.choice(_FINDS)}.",
        f"Tell what {other} thinks of {name}, years later.",
        "Write how it ends.",
    )
    first = f"Write a long story: {name}, a {random.choice(_TRADES)} in {random.choice(_PLACES)},"
    asked = f"{first} {random.choice(_FINDS)}."
    return Script([], [asked, *islice(cycle(follow), turns - 1)])


KINDS: dict[str, Callable[[int, int, Random], Script]] = {
    "edits": _edits, "json": _json, "code": _code, "prose": _prose,
}  # fmt: skip
"""The kinds of text, the most repetitive first."""
