"""Load recipes from YAML, apply `key=value` overrides, and report all errors at once.

Paths in a recipe file are relative to that file, paths in an override to the current folder; the resolved copy has
absolute paths. A recipe can inherit from another one with `extends: NAME_OR_FILE`.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from neuron_sum.errors import RecipeError, reading
from neuron_sum.recipes.parsing import CONTROLS, MAX_BYTES, REMEDY, SHOWN, parse
from neuron_sum.recipes.schema import WITHOUT_EFFECT, MaybePath, Recipe

SHIPPED = Path(__file__).parent / "shipped"

MAX_PARENTS = 10
"""The most recipes that extend each other."""
MAX_FAULTS = 50
"""The most errors in a message."""

NAME_RECIPE = "name a recipe with --recipe NAME (in Python recipe=NAME)"
"""The beginning of a hint, for the command and for the function of the Python API."""

RecipeSource = str | Path | Recipe
"""The name or the file of a recipe, or a loaded recipe."""

DISPLACES = {
    "source": ("path", "config", "revision", "files", "columns", "delimiter", "encoding", "license"),
    "name_or_path": ("revision", "config", "tokenizer"),
    "config": ("revision", "name_or_path"),
    "preset": ("template", "rendered"),
    "template": ("preset", "rendered"),
}
"""Key -> keys that are removed when it changes, so that a child need not set its parent's values to null."""

REPLACED = {
    "compile.neuron.core": (0, "the environment variable NEURON_RT_VISIBLE_CORES"),
    "data.max_eval_examples": (None, "max_validation_examples and max_test_examples"),
}
"""Former keys, with their default, which stored recipes contain and which is ignored, and the keys to use instead."""


def shipped_recipes() -> dict[str, Path]:
    """The paths of the bundled recipes, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def load_recipe(recipe: RecipeSource, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies overrides.

    Args:
        recipe: The name of a bundled recipe, a YAML file, or a loaded recipe to change.
        overrides: `dotted.key=value` strings; the value is YAML.

    Raises:
        RecipeError: With all errors, each with its dotted path, the value and the valid values.
    """
    name = recipe.name if isinstance(recipe, Recipe) else str(recipe)
    raw = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else _read(_find(name))
    if isinstance(overrides, str):
        overrides = (overrides,)
    faults: list[str] = []
    layer: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key or len(key) > SHOWN:
            shown = f"{override!r:.{SHOWN}}"
            faults.append(f"{shown} is not an override; use key=value, such as train.learning_rate=1e-4")
            continue
        is_mark = len(text) == 1 or text == r"\t"
        try:
            value = parse(text, f"{key} = {text!r:.80}")
        except RecipeError as error:
            is_plain = len(text) == 1 or not text.startswith(("&", "*", "!"))
            if not is_plain or not _is_text(key) or len(text) > SHOWN or CONTROLS.search(text):
                faults.append(error.message)
                continue
            value = text
        if is_mark and not isinstance(value, int) and text != "~" and _is_text(key):  # such as | and # as a delimiter
            value = text.replace(r"\t", "\t")
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
    return _validate(_resolve_paths(raw, Recipe, Path.cwd()), name, faults)


def load_resolved(path: Path) -> Recipe:
    """Reads a recipe that `Recipe.to_yaml` wrote."""
    return _validate(_read(path), str(path), [])


def differences(one: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two recipes differ, with both values."""
    first, second = (dict(leaves(recipe.model_dump(mode="json"))) for recipe in (one, other))
    keys = sorted({*first, *second})
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested dicts with their dotted keys; an empty dict is a value.

    Args:
        value: The dict, such as that of a recipe.
        prefix: The dotted key of `value`.
    """
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


def _find(name_or_path: str) -> Path:
    shipped = shipped_recipes()
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = _expanded(name_or_path)
    if _is_file(path):
        return path
    close = difflib.get_close_matches(name_or_path[:SHOWN], shipped, n=1)
    raise RecipeError(
        f"recipe {name_or_path!r:.{SHOWN}} not found: it is neither a file nor one of {', '.join(shipped)}",
        f"use {close[0]}, the most similar name" if close else "run `neuron-sum recipes list`",
    )


def _read(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Reads a recipe file as a mapping with absolute paths and with the recipe that it extends."""
    with reading(path, RecipeError):
        if path.resolve() in children:
            raise RecipeError(f"{path}: extends itself through {', '.join(str(child) for child in children)}")
        if len(children) > MAX_PARENTS:
            raise RecipeError(f"{path}: more than {MAX_PARENTS} recipes extend each other", "merge some of them")
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise RecipeError(f"{path}: larger than {MAX_BYTES:,} bytes", REMEDY)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}: not UTF-8 text", "save the recipe as UTF-8") from error
    raw = parse(text, str(path))
    if not isinstance(raw, dict):
        raise RecipeError(
            f"{path}: a recipe is a mapping of name, data, prompt, model, method, train, generate, evaluate", REMEDY
        )
    raw = _resolve_paths(raw, Recipe, path.parent.resolve())
    for key, (default, _) in REPLACED.items():
        *parents, last = key.split(".")
        section: Any = raw
        for name in parents:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and last in section and section[last] == default:
            del section[last]
    if (parent := raw.pop("extends", None)) is None:
        return raw
    if not isinstance(parent, str):
        raise RecipeError(f"{path}: extends = {parent!r:.{SHOWN}}: not the name of a recipe or a file", REMEDY)
    sibling = path.parent / parent
    return _merge(_read(sibling if _is_file(sibling) else _find(parent), (*children, path.resolve())), raw)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or contains NUL
        return False


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~ of an unknown user
        return Path(name)


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
            if isinstance(value, str):
                merged.pop(WITHOUT_EFFECT.get((key, value), ""), None)
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
            path = base / _expanded(value)
            with reading(f"{name} = {value!r:.{SHOWN}}", RecipeError, "use the path of a file or folder"):
                if path.exists() or value.startswith((".", "/", "~")):
                    resolved[name] = str(path.resolve())
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
        if len(faults) > MAX_FAULTS:
            faults = [*faults[:MAX_FAULTS], f"… and {len(faults) - MAX_FAULTS} more"]
        hint = "run `neuron-sum recipes schema` to print all keys"
        raise RecipeError(f"{origin}: {count}\n  " + "\n  ".join(faults), hint)
    return recipe


def _fault(item: Any) -> str:
    """One pydantic error as `dotted.path = value: valid values`."""
    location = [str(part) for part in item["loc"]] or ["recipe"]
    key, section = _locate(location)
    shown = key if len(key) <= SHOWN else f"{key[:SHOWN]}…"
    if item["type"] == "extra_forbidden":
        valid = list(section.model_fields)
        close = difflib.get_close_matches(location[-1][:SHOWN], valid, n=1)
        guess = f"; most similar: {close[0]}" if close else ""
        if key in REPLACED:
            guess = f"; use {REPLACED[key][1]} instead"
        return f"{shown}: unknown key{guess} (valid: {', '.join(valid)})"
    if item["type"] == "missing":
        return f"{shown}: missing"
    if item["type"] == "value_error":
        return f"{shown}: {item['ctx']['error']!s:.{2 * SHOWN}}"
    if item["type"] == "union_tag_invalid":
        return f"{shown}.name = {item['ctx']['tag']!r:.{SHOWN}}: valid values are {item['ctx']['expected_tags']}"
    if item["type"] in ("bool_type", "bool_parsing"):
        return f"{shown} = {item['input']!r:.{SHOWN}}: valid values are true, false"
    return f"{shown} = {item['input']!r:.{SHOWN}}: {item['msg'][0].lower()}{item['msg'][1:]}"


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
        choices = [_item_of(choice) for choice in choices]
        if len(choices) == 1 and _is_section(choices[0]):
            section = choices[0]
    return ".".join(keys), section


def _is_text(key: str) -> bool:
    """Whether the values of a dotted key are texts of any content."""
    choices: list[Any] = [Recipe]
    for part in key.split("."):
        fields = [
            choice.model_fields[part] for choice in choices if _is_section(choice) and part in choice.model_fields
        ]
        choices = [choice for field in fields for choice in _choices(field.annotation)]
    return bool(choices) and all(choice is str for choice in choices)


def _choices(annotation: Any) -> list[Any]:
    """The members of a union without None; the annotation itself if it is not a union."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return [member for member in members if member is not NoneType]


def _item_of(annotation: Any) -> Any:
    """The section of which a tuple has any number; any other annotation itself."""
    if get_origin(annotation) is not tuple:
        return annotation
    item = getattr(get_args(annotation)[0], "__origin__", None)
    return item if _is_section(item) else annotation


def _tags(choice: Any) -> set[str]:
    """The tags that pydantic may use for a section: the class name, or the literal values of a discriminator."""
    if not _is_section(choice):
        return set()
    literals = (field.annotation for field in choice.model_fields.values() if get_origin(field.annotation) is Literal)
    return {choice.__name__, *(value for literal in literals for value in get_args(literal))}


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type(BaseModel))
