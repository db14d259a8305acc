"""Make a LoRA adapter with random weights for a Llama-shaped model, as PEFT keeps it.

    python tests/live/make_adapter.py MODEL_DIR ADAPTER_DIR [--seed N] [--rank N] [--scale X]

`--rank` beyond what an engine was started for gives one that it refuses.
"""

import argparse
import json
import random
from array import array
from pathlib import Path


def make_adapter(model: Path, to: Path, *, seed: int, rank: int, scale: float) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` into `to`."""
    config = json.loads((model / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    outputs = {"q_proj": heads * size, "v_proj": config["num_key_value_heads"] * size}
    chance = random.Random(seed)
    tensors: dict[str, tuple[list[int], bytes]] = {}
    for layer in range(config["num_hidden_layers"]):
        for part, width in outputs.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{part}"
            for letter, shape in (("A", [rank, hidden]), ("B", [width, rank])):
                numbers = (chance.uniform(-scale, scale) for _ in range(shape[0] * shape[1]))
                tensors[f"{name}.lora_{letter}.weight"] = (shape, array("f", numbers).tobytes())
    to.mkdir(parents=True, exist_ok=True)
    _save(to / "adapter_model.safetensors", tensors)
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(outputs),
    }
    (to / "adapter_config.json").write_text(json.dumps(about, indent=2))


def _save(path: Path, tensors: dict[str, tuple[list[int], bytes]]) -> None:
    """The safetensors form: the header's length, the header, and the tensors behind it."""
    header, at = {}, 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, data in tensors.values():
            file.write(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("to", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--scale", type=float, default=0.1)
    given = parser.parse_args()
    make_adapter(given.model, given.to, seed=given.seed, rank=given.rank, scale=given.scale)
