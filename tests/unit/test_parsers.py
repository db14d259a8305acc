"""Which parsers read what a family of models writes, by its template or its architecture."""

import pytest

from sessile.engines.flags import Flags, read_help
from sessile.engines.model_facts import ModelFacts
from sessile.engines.parsers import REASONING, TOOLS, reasoning_parser, tool_parser

# What `--help` of SGLang 0.5.23 and vLLM 0.32.0 lists, and vLLM's registry of reasoning parsers.
SGLANG_TOOLS = """
    auto apertus2509 beam cohere_command4 deepseekv3 deepseekv31 deepseekv32 deepseekv4
    deepseekv41 dots glm glm45 glm47 gpt-oss k2_horizon kimi_k2 kimi_k3 lfm2 ling3 llama3 mimo
    minicpm5 mistral muse poolside_v1 pythonic qwen qwen25 qwen3_coder spark25 step3 step3p5
    minimax-m2 minimax-m3 nanbeige trinity interns1 hermes hunyuan gigachat3 gigachat35 gemma4
    inkling iquest_q1 response_template
"""
SGLANG_REASONING = """
    auto apertus2509 beam deepseek-r1 deepseek-v3 deepseek-v4 deepseek-v41 dots glm45 ling3
    hunyuan gpt-oss k2_horizon kimi kimi_k2 kimi_k3 mimo muse poolside_v1 qwen3 qwen3-thinking
    minimax minimax-append-think minimax-m3 nanbeige step3 step3p5 mistral nemotron_3
    granite_thinking_parser interns1 gemma4 inkling iquest_q1 cohere_command4 gigachat35
    response_template
"""
VLLM_TOOLS = """
    apertus cohere_command3 cohere_command4 deepseek_v3 deepseek_v31 deepseek_v32 deepseek_v4
    deepseek_v41 dots ernie45 functiongemma gemma4 gigachat3 glm45 glm47 granite granite-20b-fc
    granite4 hermes hf hunyuan_a13b hy_v3 hy_v4 inkling internlm jamba k2_horizon kimi_k2 kimi_k3
    lfm2 ling3 llama3_json llama4_json llama4_pythonic longcat mimo minicpm5 minimax_m2 minimax_m3
    mistral muse_glimmer olmo3 openai phi4_mini_json plamo3 poolside_v1 pythonic qwen3_coder
    qwen3_json qwen3_xml seed_oss step3 step3p5 xlam
"""
VLLM_REASONING = """
    deepseek_r1 deepseek_v3 deepseek_v4 deepseek_v41 poolside_v1 cohere_command3 cohere_command4
    ernie45 gemma4 glm45 glm47 ling3 openai_gptoss granite granite_thinking_parser hf holo2
    hunyuan_a13b hy_v3 hy_v4 kimi_k2 kimi_k3 k2_horizon mimo minicpmv minimax_m2
    minimax_m2_append_think minimax_m3 mistral nemotron_v3 olmo3 plamo3 muse_glimmer qwen3
    seed_oss step3 step3p5 inkling
"""


def model(template: str = "", family: str | None = None) -> ModelFacts:
    """One with this template, of this architecture."""
    return ModelFacts(source="m", name="m", template=template, family=family)


def test_every_parser_that_is_named_is_one_that_the_engines_have():
    """An engine ends at its start for a name that it does not know."""
    for rows, sglang, vllm in (
        (TOOLS, SGLANG_TOOLS, VLLM_TOOLS), (REASONING, SGLANG_REASONING, VLLM_REASONING)
    ):  # fmt: skip
        assert {row.sglang for row in rows} - {None} <= set(sglang.split())
        assert {row.vllm for row in rows} - {None} <= set(vllm.split())


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
@pytest.mark.parametrize(("rows", "find"), [(TOOLS, tool_parser), (REASONING, reasoning_parser)])
def test_no_row_stands_behind_one_that_always_fits_first(engine, rows, find):
    """A model that shows the marks of a row, and no other, has the parser of that row."""
    for row in rows:
        family = row.families[0] if row.families else None
        assert find(engine, model(" ".join(row.marks), family)) == getattr(row, engine)


@pytest.mark.parametrize(
    ("template", "family", "tools", "reasoning"),
    [
        ("", "deepseek_v32", "deepseek_v32", "deepseek_v3"),
        ("<|channel> <|tool_call>call:", "gemma4", "gemma4", "gemma4"),
        ("<|start_of_role|> <|tool_call|>", "granite", "granite", None),
        ("<|start_of_role|> <tool_call> </tool_call>", "granitemoehybrid", "granite4", None),
        ("<|python_start|> [func_name1(a=1)]", "llama4", "llama4_pythonic", None),
        ('<|python_start|> {"name": x, "parameters": y}', "llama4", "llama4_json", None),
        ("functools[{}]", "phi3", "phi4_mini_json", None),
        ("functools[{}]", "llama", None, None),
        ("<tool_calls>", "llama", None, None),
        ("<tool_calls> <think> <answer>", "hunyuan_v1_moe", "hunyuan_a13b", "hunyuan_a13b"),
        ("<seed:tool_call> <seed:think>", "seed_oss", "seed_oss", "seed_oss"),
        ("<think> <|tool_calls_section_begin|>", "kimi_k2", "kimi_k2", "kimi_k2"),
        ("[TOOL_CALLS] [THINK]", "mistral3", "mistral", "mistral"),
        ("<think> <｜Assistant｜>", "deepseek_v3", None, "deepseek_r1"),
        ("<think> <｜Assistant｜> if not thinking is defined", "deepseek_v3", None, "deepseek_v3"),
    ],
)
def test_vllm_has_a_parser_for_these(template, family, tools, reasoning):
    """A mark that several families share counts for the one that it is meant for."""
    found = model(template, family)
    assert (tool_parser("vllm", found), reasoning_parser("vllm", found)) == (tools, reasoning)


def test_what_a_real_help_lists_is_known_as_choices():
    """By these SGLang's own detection is found, and a name that a version lacks is left out."""
    names = "{auto," + ",".join(SGLANG_TOOLS.split()) + "}"
    known: Flags = read_help(f"options:\n  --tool-call-parser {names}\n    Specify it.\n")
    assert known.takes("--tool-call-parser", "auto")
    assert not known.takes("--tool-call-parser", "of-tomorrow")
