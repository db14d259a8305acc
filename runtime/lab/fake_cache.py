"""The prefix cache of a fake replica: which prompts it has computed before, message by message."""

from hashlib import blake2b

CHARS_PER_TOKEN = 4


class PrefixCache:
    """One rank's, without a bound. A `space` is what shares nothing with others: an adapter."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()

    def match(self, space: str, prompt: list[str], prompt_tokens: int) -> int:
        """Tokens of the longest run of leading messages that was served before in that `space`; as
        in an engine, at least one token is always computed."""
        found = size = 0
        for text, key in zip(prompt, _keys(space, prompt), strict=True):
            size += len(text)
            if key in self._known:
                found = size // CHARS_PER_TOKEN
        return min(found, prompt_tokens - 1)

    def insert(self, space: str, texts: list[str]) -> None:
        """Keep these messages, from the first on."""
        self._known.update(_keys(space, texts))

    def clear(self) -> None:
        """Forget all, as a restart does."""
        self._known.clear()


def _keys(space: str, texts: list[str]) -> list[bytes]:
    keys, key = [], space.encode()
    for text in texts:
        key = digest(key, text)
        keys.append(key)
    return keys


def digest(before: bytes, text: str) -> bytes:
    """What stands for a text behind what came before it."""
    return blake2b(before + text.encode(), digest_size=16).digest()
