"""Load recipes from YAML, apply `key=value` overrides, and report all errors at once.

Paths in a recipe file are relative to that file, paths in an override to the current folder; the resolved copy has
absolute paths. A recipe can inherit from another one with `extends: NAME_OR_FILE`.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from neuron_sum.errors import RecipeError
from neuron_sum.recipes.schema import MaybePath, Recipe

SHIPPED = Path(__file__).parent / "shipped"

DISPLACES = {
    "source": ("path", "config", "revision", "files", "columns", "delimiter", "encoding", "license"),
    "name_or_path": ("revision", "config", "tokenizer"),
    "config": ("revision", "name_or_path"),
    "preset": ("template",),
    "template": ("preset",),
}
"""Key -> keys that are removed when it changes, so that a child need not set its parent's values to null."""


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads 1e-4 as a number (YAML 1.2) and rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a plain word", problem_mark=key.start_mark)
            if key.value in keys:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key.value!r}", problem_mark=key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def shipped_recipes() -> dict[str, Path]:
    """The paths of the bundled recipes, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies overrides.

    Args:
        name_or_path: The name of a bundled recipe, or a YAML file.
        overrides: `dotted.key=value` strings; the value is YAML.

    Raises:
        RecipeError: With all errors, each with its dotted path, the value and the valid values.
    """
    raw = _read(_find(name_or_path))
    faults: list[str] = []
    layer: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            faults.append(f"{override!r} is not an override; use key=value, such as train.learning_rate=1e-4")
            continue
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            faults.append(f"{key} = {text!r}: not a YAML value ({_one_line(error)})")
            continue
        if key == "method" and isinstance(value, str):  # the short form: method=lora
            key, value = "method.name", value
        *parents, last = key.split(".")
        inner: Any = layer
        for parent in parents:
            inner = inner.setdefault(parent, {}) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner[last] = value
        else:
            faults.append(f"{key}: another override sets {'.'.join(parents)} to a plain value")
    raw = _merge(raw, _resolve_paths(layer, Recipe, Path.cwd()))
    return _validate(_resolve_paths(raw, Recipe, Path.cwd()), name_or_path, faults)


def load_resolved(path: Path) -> Recipe:
    """Reads a recipe that `Recipe.to_yaml` wrote."""
    return _validate(_read(path), str(path), [])


def differences(one: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two recipes differ, with both values."""
    first, second = (dict(_leaves(recipe.model_dump(mode="json"))) for recipe in (one, other))
    keys = sorted({*first, *second})
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


def _find(name_or_path: str) -> Path:
    shipped = shipped_recipes()
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    close = difflib.get_close_matches(name_or_path, shipped, n=1)
    raise RecipeError(
        f"recipe {name_or_path!r} not found: it is neither a file nor one of {', '.join(shipped)}",
        f"use {close[0]}, the most similar name" if close else "run `neuron-sum recipes list`",
    )


def _read(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Reads a recipe file as a mapping with absolute paths and with the recipe that it extends."""
    if path.resolve() in children:
        raise RecipeError(f"{path}: extends itself through {', '.join(str(child) for child in children)}")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {_one_line(error)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {path}: {error}") from error
    if not isinstance(raw, dict):
        raise RecipeError(
            f"{path}: a recipe is a mapping of name, data, prompt, model, method, train, generate, evaluate"
        )
    raw = _resolve_paths(raw, Recipe, path.parent.resolve())
    if (parent := raw.pop("extends", None)) is None:
        return raw
    sibling = path.parent / str(parent)
    return _merge(_read(sibling if sibling.is_file() else _find(str(parent)), (*children, path.resolve())), raw)


def _merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Merges `layer` over `base`, mapping by mapping, and removes the keys that the layer displaces.

    Another method or model type replaces the whole section, because it has different keys.
    """
    merged = dict(base)
    for key, value in layer.items():
        if value is not None and value != base.get(key):
            of_hub = ("config", "revision", "license") if key == "path" and base.get("source") == "hub" else ()
            of_key = () if key == "config" and "source" in base else DISPLACES.get(key, ())  # data.config, model.config
            for displaced in (*of_key, *of_hub):
                merged.pop(displaced, None)
    for key, value in layer.items():
        old = merged.get(key)
        if key == "method" and isinstance(value, str):  # the short form: method=lora
            value = {"name": value}
        if isinstance(old, dict) and isinstance(value, dict) and _kind({**old, **value}) == _kind(old):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _kind(section: Mapping[str, Any]) -> tuple[Any, Any]:
    """The values that determine a section's keys: the method's name, the model configuration's type."""
    return section.get("name"), section.get("model_type")


def _resolve_paths(raw: Mapping[str, Any], model: type[BaseModel], base: Path) -> dict[str, Any]:
    """Makes paths absolute. A plain `a/b` is a path if it exists in `base`; otherwise it may be a hub id."""
    resolved = dict(raw)
    for name, field in model.model_fields.items():
        value = resolved.get(name)
        if isinstance(value, str) and _may_be_path(field.annotation, field.metadata):
            path = Path(value).expanduser()
            if value.startswith((".", "/", "~")) or (base / path).exists():
                resolved[name] = str((base / path).resolve())
        elif isinstance(value, dict) and _is_section(field.annotation):
            resolved[name] = _resolve_paths(value, field.annotation, base)
    return resolved


def _may_be_path(annotation: Any, metadata: Sequence[Any] = ()) -> bool:
    if any(isinstance(mark, MaybePath) for mark in (*metadata, *getattr(annotation, "__metadata__", ()))):
        return True
    return any(_may_be_path(inner) for inner in get_args(annotation))


def _validate(raw: Mapping[str, Any], origin: str, faults: list[str]) -> Recipe:
    try:
        text = json.dumps(raw, default=str)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{origin}: a value contains itself", "remove the YAML anchor") from error
    try:
        # JSON mode is strict about types, but accepts a list for a tuple and 1 for 1.0, as YAML has neither.
        recipe = Recipe.model_validate_json(text)
    except ValidationError as error:
        faults = faults + [_fault(item) for item in error.errors()]
    if faults:
        count = "1 error" if len(faults) == 1 else f"{len(faults)} errors"
        hint = "run `neuron-sum recipes schema` to print all keys"
        raise RecipeError(f"{origin}: {count}\n  " + "\n  ".join(faults), hint)
    return recipe


def _fault(item: Any) -> str:
    """One pydantic error as `dotted.path = value: valid values`."""
    location = [str(part) for part in item["loc"]] or ["recipe"]
    key, section = _locate(location)
    if item["type"] == "extra_forbidden":
        valid = list(section.model_fields)
        close = difflib.get_close_matches(location[-1], valid, n=1)
        guess = f"; most similar: {close[0]}" if close else ""
        return f"{key}: unknown key{guess} (valid: {', '.join(valid)})"
    if item["type"] == "missing":
        return f"{key}: missing"
    if item["type"] == "value_error":
        return f"{key}: {item['ctx']['error']}"
    if item["type"] == "union_tag_invalid":
        return f"{key}.name = {item['ctx']['tag']!r}: valid values are {item['ctx']['expected_tags']}"
    return f"{key} = {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _locate(location: Sequence[str]) -> tuple[str, type[BaseModel]]:
    """The dotted key of an error's location, and the section that contains it.

    After a field that is a union, pydantic adds the tag of the member to the location, which is not part of the key.
    """
    keys: list[str] = []
    section: type[BaseModel] = Recipe
    choices: list[Any] = []
    for part in location:
        if len(choices) > 1:
            section = next((choice for choice in choices if part in _tags(choice)), section)
            choices = []
            continue
        keys.append(part)
        choices = _choices(section.model_fields[part].annotation) if part in section.model_fields else []
        if len(choices) == 1 and _is_section(choices[0]):
            section = choices[0]
    return ".".join(keys), section


def _choices(annotation: Any) -> list[Any]:
    """The members of a union without None; the annotation itself if it is not a union."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return [member for member in members if member is not NoneType]


def _tags(choice: Any) -> set[str]:
    """The tags that pydantic may use for a section: the class name, or the literal values of a discriminator."""
    if not _is_section(choice):
        return set()
    literals = (field.annotation for field in choice.model_fields.values() if get_origin(field.annotation) is Literal)
    return {choice.__name__, *(value for literal in literals for value in get_args(literal))}


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type(BaseModel))


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))
