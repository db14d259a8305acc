"""How long a prompt and its reply will be in tokens, before any tokenizer has seen them.

Learned from what engines report: tokens a byte for each model and, kept with its standing, for each
session; reply lengths for each model.
"""

_TOKENS_PER_BYTE = 0.27
_REPLY_TOKENS = 200.0
_NEW_WEIGHT = 0.1


class Sizes:
    """One model's lengths. Made by `asks`."""

    def __init__(self) -> None:
        self.tokens_per_byte = _TOKENS_PER_BYTE
        self.reply_tokens = _REPLY_TOKENS
        self._learned = 0

    def learn(self, size: int, prompt_tokens: int, output_tokens: int | None) -> float:
        """A prompt of `size` bytes was so many tokens; its own tokens a byte."""
        ratio = prompt_tokens / max(size, 1)
        self._learned += 1
        weight = max(_NEW_WEIGHT, 1 / self._learned)  # the first is worth more than the guess
        self.tokens_per_byte += weight * (ratio - self.tokens_per_byte)
        if output_tokens:
            self.reply_tokens += weight * (output_tokens - self.reply_tokens)
        return ratio

    def reply(self, most: int | None) -> int:
        """Tokens to expect of a reply for which at most `most` were asked."""
        expected = round(self.reply_tokens)
        return expected if most is None else min(expected, most)
