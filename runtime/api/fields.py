"""Checks of the fields of a request: each gives the value, or raises `InvalidRequest` naming the
field.

`name` is the field's key, `where` its whole path where that is another, as `tools[0].name`.
"""

from collections.abc import Collection, Mapping
from typing import Any

from sessile.errors import InvalidRequest, NotSupported

Body = Mapping[str, Any]


def text_of(body: Body, name: str, where: str | None = None) -> str:
    """A string that must be there; it may be empty."""
    value = body.get(name)
    if isinstance(value, str):
        return value
    raise InvalidRequest(f"{where or name} must be a string", param=where or name)


def name_of(body: Body, name: str, where: str | None = None) -> str:
    """A string that must be there, and not be empty."""
    value = body.get(name)
    if isinstance(value, str) and value:
        return value
    raise InvalidRequest(f"{where or name} must be a non-empty string", param=where or name)


def string_of(body: Body, name: str, where: str | None = None) -> str | None:
    """A string, None where it was left out."""
    value = body.get(name)
    if value is None or isinstance(value, str):
        return value
    raise InvalidRequest(f"{where or name} must be a string", param=where or name)


def flag_of(body: Body, name: str, default: bool, where: str | None = None) -> bool:
    """True or false, `default` where it was left out."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidRequest(f"{where or name} must be true or false", param=where or name)
    return value


def whole_of(
    body: Body, name: str, least: int, where: str | None = None, *, most: int | None = None
) -> int | None:
    """A whole number, None where it was left out."""
    value = body.get(name)
    if value is None:
        return None
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or value < least
        or (most is not None and value > most)
    ):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise InvalidRequest(
            f"{where or name} must be a whole number, {bounds}", param=where or name
        )
    return value


def number_of(body: Body, name: str, least: float) -> float | None:
    """A number, None where it was left out."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or value < least:
        raise InvalidRequest(f"{name} must be a number, at least {least:g}", param=name)
    return value


def object_of(body: Body, name: str, where: str | None = None) -> dict[str, Any]:
    """An object, an empty one where it was left out."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where or name} must be an object", param=where or name)
    return value


def objects_of(body: Body, name: str, where: str | None = None) -> list[dict[str, Any]]:
    """A list of objects, an empty one where it was left out."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidRequest(f"{where or name} must be a list", param=where or name)
    for index, entry in enumerate(value):
        if not isinstance(entry, dict):
            at = f"{where or name}[{index}]"
            raise InvalidRequest(f"{at} must be an object", param=at)
    return value


def one_of(value: object, allowed: tuple[str, ...], where: str) -> str:
    """One of the words `allowed`."""
    if isinstance(value, str) and value in allowed:
        return value
    raise InvalidRequest(f"{where} must be {' or '.join(allowed)}, not {shown(value)}", param=where)


def shown(value: object) -> str:
    """A value as it may be quoted in a message."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def only(given: Mapping[str, Any], names: Collection[str], where: str) -> None:
    """Refuse by name what nothing would be done about. None is as good as not given."""
    for name, value in given.items():
        if value is not None and name not in names:
            raise NotSupported(f"{where}.{name} is not supported", param=f"{where}.{name}")
