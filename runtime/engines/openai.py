"""Anything that speaks OpenAI's API: no load, no incarnation, no way to abort but to hang up."""

from sessile.engines.base import OpenAIShaped


class OpenAI(OpenAIShaped):
    """The adapter of `openai=URL`; what such a server does not report stays unknown."""

    kind = "openai"
