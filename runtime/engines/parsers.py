"""Which of an engine's parsers reads the tool calls and the reasoning of a family of models.

A model shows how it writes a tool call by its chat template, which is what is looked at first: the
name of an architecture mostly does not tell (SmolLM2 is a `llama` too). Where it does, since its
models write in one way only or have no template, the row names it. Where nothing is recognised
there is no parser, and tool calls come as text.

NOTE: Cohere's are left out: vLLM's parsers of them need a package that it does not bring.
"""

from typing import NamedTuple

from sessile.engines.model_facts import ModelFacts


class _Row(NamedTuple):
    """`marks` are in the template, all of them, and the model is of one of `families`, if there are
    any. The names are those of SGLang and vLLM; None: it has no such parser."""

    marks: tuple[str, ...]
    sglang: str | None
    vllm: str | None
    families: tuple[str, ...] = ()


# NOTE: the first row that fits wins; the narrower ones come first.
TOOLS = (
    _Row((), "kimi_k3", "kimi_k3", ("kimi_k3",)),
    _Row((), "deepseekv41", "deepseek_v41", ("deepseek_v41",)),
    _Row((), "deepseekv4", "deepseek_v4", ("deepseek_v4",)),
    _Row((), "deepseekv32", "deepseek_v32", ("deepseek_v32",)),
    _Row(("<｜DSML｜function_calls>",), "deepseekv32", "deepseek_v32"),
    _Row(("<|start|>assistant<|channel|>",), "gpt-oss", "openai"),
    _Row(("<|tool_call>",), "gemma4", "gemma4"),
    _Row(("<start_function_call>",), None, "functiongemma"),
    _Row(("]<]minimax[>[",), "minimax-m3", "minimax_m3"),
    _Row(("<minimax:tool_call>",), "minimax-m2", "minimax_m2"),
    _Row(("<ifm|tool_call>",), "k2_horizon", "k2_horizon"),
    _Row(("<dots_function_call>",), "dots", "dots"),
    _Row(("<longcat_tool_call>",), None, "longcat"),
    _Row(("<seed:tool_call>",), None, "seed_oss"),
    _Row(("<steptml:invoke",), "step3", "step3"),
    _Row(("<|plamo:begin_tool_request:plamo|>",), None, "plamo3"),
    _Row(("<|content_invoke_tool_json|>",), "inkling", "inkling"),
    _Row(("<role>SYSTEM</role>", "<|role_end|>", "<arg_key>"), "ling3", "ling3"),
    _Row(("<tool_sep", "<arg_key"), "hunyuan", "hy_v3"),
    _Row(("<tool_call>", "<arg_key>"), "glm45", "glm45"),
    _Row(("<tool_call>", "<function="), "qwen3_coder", "qwen3_coder"),
    _Row(("<|tool_calls_section_begin|>",), "kimi_k2", "kimi_k2"),
    _Row(("<｜tool▁calls▁begin｜>", "```json"), "deepseekv3", "deepseek_v3"),
    _Row(("<｜tool▁calls▁begin｜>",), "deepseekv31", "deepseek_v31"),
    _Row(("<|start_of_role|>", "</tool_call>"), "qwen25", "granite4"),
    _Row(("<|start_of_role|>", "<|tool_call|>"), None, "granite"),
    _Row(("<|start_of_role|>", "<tool_call>"), None, "granite"),
    _Row(("<tool_call>",), "qwen25", "ernie45", ("ernie4_5", "ernie4_5_moe")),
    _Row(("<tool_calls>",), None, "hunyuan_a13b", ("hunyuan_v1_moe", "hunyuan_v1_dense")),
    _Row(("<tool_calls>",), None, "jamba", ("jamba",)),
    _Row(("<function_calls>",), None, "olmo3", ("olmo3",)),
    _Row(("tool",), "lfm2", "lfm2", ("lfm2", "lfm2_moe")),
    _Row(("<tool_call>",), "qwen25", "hermes"),
    _Row(("[TOOL_CALLS]",), "mistral", "mistral"),
    _Row(("<|python_start|>", "func_name1("), "pythonic", "llama4_pythonic"),
    _Row(("<|python_start|>", '"parameters": '), "llama3", "llama4_json"),
    _Row(("<|python_tag|>",), "llama3", "llama3_json"),
    _Row(("ipython", "<|eot_id|>"), "llama3", "llama3_json"),
    _Row(("function call<|role_sep|>",), "gigachat3", "gigachat3"),
    _Row(("<|action_start|>", "<|plugin|>"), None, "internlm"),
    _Row(("functools",), None, "phi4_mini_json", ("phi3",)),
    _Row(("<function name=", "<param name="), "minicpm5", "minicpm5"),
    _Row(("<|tools_prefix|>",), "apertus2509", "apertus"),
)
REASONING = (
    _Row((), "kimi_k3", "kimi_k3", ("kimi_k3",)),
    _Row((), "deepseek-v41", "deepseek_v41", ("deepseek_v41",)),
    _Row((), "deepseek-v4", "deepseek_v4", ("deepseek_v4",)),
    _Row((), "deepseek-v3", "deepseek_v3", ("deepseek_v32",)),
    _Row(("<|start|>assistant<|channel|>",), "gpt-oss", "openai_gptoss"),
    _Row(("<|channel>",), "gemma4", "gemma4"),
    _Row(("]<]minimax[>[",), "minimax-m3", "minimax_m3"),
    _Row(("<ifm|think>",), "k2_horizon", "k2_horizon"),
    _Row(("<seed:think>",), None, "seed_oss"),
    _Row(("<|plamo:begin_think:plamo|>",), None, "plamo3"),
    _Row(("<|content_thinking|>",), "inkling", "inkling"),
    _Row(("[THINK]",), "mistral", "mistral"),
    _Row(("Here is my thought process:",), None, "granite"),
    _Row(("<role>SYSTEM</role>", "<|role_end|>", "<arg_key>"), "ling3", "ling3"),
    _Row(("<tool_sep", "<arg_key"), "hunyuan", "hy_v3"),
    _Row(("<think>", "<steptml:invoke"), "step3", "step3"),
    _Row(("<think>", "<answer>"), None, "hunyuan_a13b", ("hunyuan_v1_moe", "hunyuan_v1_dense")),
    _Row(("<think>",), None, "ernie45", ("ernie4_5", "ernie4_5_moe")),
    _Row(("<think>",), None, "olmo3", ("olmo3",)),
    _Row(("<think>", "<arg_key>"), "glm45", "glm45"),
    _Row(("<think>", "<minimax:tool_call>"), "minimax", "minimax_m2"),
    _Row(("<think>", "<|tool_calls_section_begin|>"), "kimi_k2", "kimi_k2"),
    _Row(("<think>", "enable_thinking"), "qwen3", "qwen3"),
    # It thinks only if it is told to, which the parser of R1 does not know.
    _Row(("<think>", "<｜Assistant｜>", "thinking is defined"), "deepseek-v3", "deepseek_v3"),
    _Row(("<think>", "<｜Assistant｜>"), "deepseek-r1", "deepseek_r1"),
)


def tool_parser(engine: str, model: ModelFacts) -> str | None:
    """The name of `engine`'s ("sglang" or "vllm") parser of this model's tool calls."""
    return _find(TOOLS, engine, model)


def reasoning_parser(engine: str, model: ModelFacts) -> str | None:
    """The name of `engine`'s parser of this model's reasoning."""
    return _find(REASONING, engine, model)


def _find(rows: tuple[_Row, ...], engine: str, model: ModelFacts) -> str | None:
    for row in rows:
        if row.families and model.family not in row.families:
            continue
        if all(mark in model.template for mark in row.marks):
            return row.sglang if engine == "sglang" else row.vllm
    return None
