"""Which of an engine's parsers reads the tool calls and the reasoning of a family of models.

A model shows how it writes a tool call by its chat template, which is what is looked at: the name
of an architecture does not tell (SmolLM2 is a `llama` too). Where nothing is recognised there is
no parser, and tool calls come as text.
"""

from typing import NamedTuple

from sessile.engines.model_facts import ModelFacts


class _Row(NamedTuple):
    marks: tuple[str, ...]
    sglang: str
    vllm: str


# NOTE: the first row whose marks are all there wins; the narrower ones come first.
_TOOLS = (
    _Row(("<|start|>assistant<|channel|>",), "gpt-oss", "openai"),
    _Row(("<minimax:tool_call>",), "minimax-m2", "minimax_m2"),
    _Row(("<tool_call>", "<arg_key>"), "glm45", "glm45"),
    _Row(("<tool_call>", "<function="), "qwen3_coder", "qwen3_coder"),
    _Row(("<|tool_calls_section_begin|>",), "kimi_k2", "kimi_k2"),
    _Row(("<｜tool▁calls▁begin｜>", "```json"), "deepseekv3", "deepseek_v3"),
    _Row(("<｜tool▁calls▁begin｜>",), "deepseekv31", "deepseek_v31"),
    _Row(("<tool_call>",), "qwen25", "hermes"),
    _Row(("[TOOL_CALLS]",), "mistral", "mistral"),
    _Row(("<|python_tag|>",), "llama3", "llama3_json"),
    _Row(("ipython", "<|eot_id|>"), "llama3", "llama3_json"),
)
_REASONING = (
    _Row(("<|start|>assistant<|channel|>",), "gpt-oss", "openai_gptoss"),
    _Row(("<think>", "<arg_key>"), "glm45", "glm45"),
    _Row(("<think>", "<minimax:tool_call>"), "minimax", "minimax_m2"),
    _Row(("<think>", "enable_thinking"), "qwen3", "qwen3"),
    _Row(("<think>", "<｜Assistant｜>"), "deepseek-r1", "deepseek_r1"),
)


def tool_parser(engine: str, model: ModelFacts) -> str | None:
    """The name of `engine`'s ("sglang" or "vllm") parser of this model's tool calls."""
    return _find(_TOOLS, engine, model)


def reasoning_parser(engine: str, model: ModelFacts) -> str | None:
    """The name of `engine`'s parser of this model's reasoning."""
    return _find(_REASONING, engine, model)


def _find(rows: tuple[_Row, ...], engine: str, model: ModelFacts) -> str | None:
    for row in rows:
        if all(mark in model.template for mark in row.marks):
            return row.sglang if engine == "sglang" else row.vllm
    return None
