"""Reading the settings from where they are given, and telling what is wrong with them.

What there is to set, and which source goes before which, is said in `settings`.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from sessile.errors import SettingsError
from sessile.pool_settings import Slice
from sessile.settings import Settings

_OTHER_VARIABLES = frozenset({"url", "api_key", "cache_dir"})
"""Read by the SDK and by the model cache, not by the server."""


def load(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """The tree from `path` (TOML), the environment and `overrides` (nested, from the flags).

    Raises `SettingsError` naming the setting and the value.
    """
    try:
        file = tomllib.loads(path.read_text()) if path else {}
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    try:
        tree = Settings(**file)
        if overrides:
            tree = _override(tree, overrides)
    except ValidationError as error:
        raise SettingsError(_sentence(error, path)) from error
    _refuse_unknown_variables()
    return tree


def _override(tree: Settings, overrides: Mapping[str, Any]) -> Settings:
    """A new, validated tree with each slice's flags laid over what the other sources gave."""
    changed: dict[str, Any] = {}
    for name, value in overrides.items():
        current = getattr(tree, name)
        try:
            if isinstance(current, Slice):
                changed[name] = type(current).model_validate({**dict(current), **value})
            else:
                field = Settings.model_fields[name]
                kind: Any = field.annotation
                if field.metadata:
                    kind = Annotated[(kind, *field.metadata)]
                changed[name] = TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            raise SettingsError(_sentence(error, None, name)) from error
    return tree.model_copy(update=changed)


def _refuse_unknown_variables() -> None:
    """Pydantic ignores `SESSILE_TYPO__X`; a setting that does nothing is worse than an error."""
    for variable in os.environ:
        if variable.startswith("SESSILE_"):
            head = variable.removeprefix("SESSILE_").split("__")[0].lower()
            if head not in Settings.model_fields and head not in _OTHER_VARIABLES:
                known = ", ".join(sorted(Settings.model_fields))
                raise SettingsError(
                    f"{variable} is not a setting; the first part is one of {known}"
                )


def _sentence(error: ValidationError, path: Path | None, part: str = "") -> str:
    first = error.errors()[0]
    name = ".".join(str(each) for each in (part, *first["loc"]) if each != "")
    where = f" (in {path})" if path else ""
    if first["type"] == "extra_forbidden":
        return f"{name} is not a setting{where}; `sessile settings` lists them all"
    given = first["input"]
    whole = isinstance(given, dict | list | tuple)  # it is to be seen in the file
    shown = "" if "api_keys" in name or whole else f", not {given!r}"
    return f"{name}: {first['msg'].removeprefix('Value error, ')}{shown}{where}"


def masked(tree: Settings) -> dict[str, Any]:
    """The effective tree as plain values, secrets masked, as `sessile settings` prints it."""
    values = tree.model_dump(mode="json")
    if url := values["store"]["url"]:
        values["store"]["url"] = re.sub(r"(://[^@/:]*:)[^/]*@", r"\1**********@", url)
    return values
