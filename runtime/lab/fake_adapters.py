"""The LoRA adapters of a fake replica, which loads and lets go of them as SGLang does."""

import asyncio
from typing import Any

import msgspec

_LOAD, _UNLOAD = "/load_lora_adapter", "/unload_lora_adapter"


class FakeAdapters:
    """`loaded` are paths by name; `asked` every call, as `load NAME` or `unload NAME`. A load takes
    `load_s`; a path in `unfit` is refused with those words. `most` is told, and not kept to."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.load_s = 0.0
        self.unfit: dict[str, str] = {}
        self.loaded: dict[str, str] = {}
        self.asked: list[str] = []

    async def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]] | None:
        """The answer to a call about adapters; None for any other path."""
        if path not in (_LOAD, _UNLOAD):
            return None
        told = msgspec.json.decode(body, type=dict[str, Any])
        name = told["lora_name"]
        self.asked.append(f"{'load' if path == _LOAD else 'unload'} {name}")
        why = ""
        if path == _LOAD:
            await asyncio.sleep(self.load_s)
            why = self.unfit.get(told["lora_path"], "")
            if name in self.loaded:
                why = f"Failed to load LoRA adapter {name} because it is already loaded"
            if not why:
                self.loaded[name] = told["lora_path"]
        elif self.loaded.pop(name, None) is None:
            why = f"LoRA with name {name} does not exist."
        return (400 if why else 200), {"success": not why, "error_message": why}

    def cards(self, base: str) -> list[dict[str, Any]]:
        """Its part of the list of models."""
        return [
            {"id": name, "object": "model", "root": path, "parent": base}
            for name, path in self.loaded.items()
        ]

    def lacks(self, body: dict[str, Any]) -> str | None:
        """The error for a request of an adapter that is not loaded."""
        name = body.get("lora_path")
        if name is None or name in self.loaded:
            return None
        return f"The following requested LoRA adapters are not loaded: {name}"
