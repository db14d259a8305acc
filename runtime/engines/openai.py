"""Anything that speaks OpenAI's API: no load, no incarnation, no way to abort but to hang up."""

from sessile.engines.base import OpenAIShaped


class OpenAI(OpenAIShaped):
    """The adapter of `openai=URL`; what such a server does not report stays unknown.

    Nothing is added to its requests: a strict server refuses fields that it does not know.
    """

    kind = "openai"
