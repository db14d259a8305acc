"""Which adapter speaks to which engine."""

from collections.abc import Mapping
from functools import cache

from sessile.engines.detect import Auto
from sessile.engines.llamacpp import LlamaCpp
from sessile.engines.lmstudio import LMStudio
from sessile.engines.ollama import Ollama
from sessile.engines.openai import OpenAI
from sessile.engines.sglang import SGLang
from sessile.engines.tensorrt_llm import TensorRTLLM
from sessile.engines.tgi import TGI
from sessile.engines.triton import Triton
from sessile.engines.vllm import VLLM
from sessile.errors import InvalidRequest
from sessile.router.engine import Engine


def engine(kind: str) -> Engine:
    """The adapter of that kind; raises `InvalidRequest` naming those there are."""
    try:
        return engines()[kind]
    except KeyError:
        known = ", ".join(engines())
        raise InvalidRequest(f"{kind!r} is not an engine; there are: {known}") from None


@cache
def engines() -> Mapping[str, Engine]:
    """Every adapter by its kind."""
    adapters = (
        SGLang(), VLLM(), LlamaCpp(), TensorRTLLM(), Triton(), TGI(), Ollama(), LMStudio(),
        OpenAI(), Auto(engine),
    )  # fmt: skip
    return {adapter.kind: adapter for adapter in adapters}
