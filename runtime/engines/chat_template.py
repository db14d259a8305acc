"""A chat template of ours, for the model that `sessile up` serves by default.

SmolLM2's own has no place for tools, so llama.cpp would leave them out of the prompt. Ours tells
them, and has llama.cpp find the calls in what the model writes.
"""

from pathlib import Path

SMOLLM2 = Path(__file__).with_name("smollm2.jinja")
