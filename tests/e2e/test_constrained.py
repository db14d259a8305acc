"""A real engine holds the JSON schema that a turn asks for."""

from typing import Any, Literal

import pytest
from openai import OpenAI
from pydantic import BaseModel, ConfigDict, ValidationError


class Toy(BaseModel):
    """What is to be said."""

    model_config = ConfigDict(extra="forbid")

    colour: Literal["red", "green"]
    large: bool


def test_a_response_s_text_is_of_its_schema(sessile_up: str) -> None:
    """Asked for by OpenAI's client, streamed or not, whatever the model would have said instead."""
    asked: Any = {
        "model": "smollm2-135m", "input": "Tell me a story about a cat.", "temperature": 0,
        "max_output_tokens": 200,
    }  # fmt: skip
    with OpenAI(base_url=f"{sessile_up}/v1", api_key="-", max_retries=0) as client:
        made = client.responses.parse(**asked, text_format=Toy)
        assert made.status == "completed" and isinstance(made.output_parsed, Toy)
        form = made.text.to_dict()  # type: ignore[union-attr]
        assert form["format"]["type"] == "json_schema"  # type: ignore[index]
        events = list(client.responses.create(**asked, text=form, stream=True))
        told = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert events[-1].type == "response.completed" and len(told) > 1
        Toy.model_validate_json("".join(told))
        free = client.responses.create(**{**asked, "max_output_tokens": 8})
        with pytest.raises(ValidationError):
            Toy.model_validate_json(free.output_text)
