"""Reading recipes: from YAML, changed by `key=value`, with every fault told at once.

Paths in a recipe file are relative to that file, paths in an override to the current folder; the resolved copy holds
them absolute. A recipe may start from another one with `extends: NAME_OR_FILE`.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from neuron_sum.errors import RecipeError
from neuron_sum.recipes.schema import FullMethod, LoraMethod, MaybePath, PromptTuningMethod, Recipe, TrainedTokenizer

SHIPPED = Path(__file__).parent / "shipped"

DISPLACES = {
    "source": ("path", "revision", "files", "columns", "delimiter", "encoding", "license"),
    "name_or_path": ("revision", "config", "tokenizer"),
    "config": ("revision", "name_or_path"),
    "preset": ("template",),
    "template": ("preset",),
}
"""A new value of the key takes away what belonged to the old one: a child need not undo its parent with nulls."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number (YAML 1.2) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a plain word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies overrides.

    Args:
        name_or_path: A shipped recipe's name, or a YAML file.
        overrides: `dotted.key=value` strings; the value is YAML.

    Raises:
        RecipeError: With every fault at once, each with its dotted path, the value, and what is allowed.
    """
    raw = _read(_find(name_or_path))
    faults: list[str] = []
    layer: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            faults.append(f"{override!r} is not an override; write key=value, such as train.learning_rate=1e-4")
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
            faults.append(f"{key}: another override gives {'.'.join(parents)} a plain value")
    raw = _merge(raw, _anchored(layer, Recipe, Path.cwd()))
    return _validated(_anchored(raw, Recipe, Path.cwd()), name_or_path, faults)


def load_resolved(path: Path) -> Recipe:
    """Reads a recipe that `Recipe.to_yaml` wrote."""
    return _validated(_read(path), str(path), [])


def differences(one: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two recipes differ, with both values."""
    left, right = dict(_leaves(one.model_dump(mode="json"))), dict(_leaves(other.model_dump(mode="json")))
    return {key: (left.get(key), right.get(key)) for key in sorted({*left, *right}) if left.get(key) != right.get(key)}


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
        f"no recipe {name_or_path!r}: neither a file nor one of {', '.join(shipped)}",
        f"did you mean {close[0]}?" if close else "neuron-sum recipes list",
    )


def _read(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe file as a mapping: paths anchored, `extends` merged in."""
    if path.resolve() in children:
        raise RecipeError(f"{path}: extends itself through {', '.join(str(child) for child in children)}")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {_one_line(error)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise RecipeError(
            f"{path}: a recipe is a mapping of name, data, prompt, model, method, train, generate, evaluate"
        )
    raw = _anchored(raw, Recipe, path.parent.resolve())
    if (parent := raw.pop("extends", None)) is None:
        return raw
    beside = path.parent / str(parent)
    return _merge(_read(beside if beside.is_file() else _find(str(parent)), (*children, path.resolve())), raw)


def _merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """`layer` over `base`, mapping by mapping; what the layer displaces goes.

    Another method or model type replaces the whole section, for its keys are its own.
    """
    merged = dict(base)
    for key, value in layer.items():
        if value is not None and value != base.get(key):
            of_hub = ("revision", "license") if key == "path" and base.get("source") == "hub" else ()
            for displaced in (*DISPLACES.get(key, ()), *of_hub):
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
    """What decides which keys a section has: a method's name, a model configuration's type."""
    return section.get("name"), section.get("model_type")


def _anchored(raw: Mapping[str, Any], model: type[BaseModel], base: Path) -> dict[str, Any]:
    """Makes paths absolute. A bare `a/b` is a path if it exists below `base`, else perhaps a hub id."""
    anchored = dict(raw)
    for name, field in model.model_fields.items():
        value = anchored.get(name)
        if isinstance(value, str) and _may_be_path(field.annotation, field.metadata):
            path = Path(value).expanduser()
            if value.startswith((".", "/", "~")) or (base / path).exists():
                anchored[name] = str((base / path).resolve())
        elif isinstance(value, dict) and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            anchored[name] = _anchored(value, field.annotation, base)
    return anchored


def _may_be_path(annotation: Any, metadata: Sequence[Any] = ()) -> bool:
    if any(isinstance(mark, MaybePath) for mark in (*metadata, *getattr(annotation, "__metadata__", ()))):
        return True
    return any(_may_be_path(inner) for inner in get_args(annotation))


def _validated(raw: Mapping[str, Any], origin: str, faults: list[str]) -> Recipe:
    try:
        text = json.dumps(raw, default=str)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{origin}: a value contains itself", "remove the YAML anchor") from error
    try:
        # JSON mode is strict about types yet takes a list for a tuple and 1 for 1.0, which is what YAML can say.
        recipe = Recipe.model_validate_json(text)
    except ValidationError as error:
        faults = faults + [_fault(item) for item in error.errors()]
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise RecipeError(f"{origin}: {count}\n  " + "\n  ".join(faults), "neuron-sum recipes schema  shows every key")
    return recipe


def _fault(item: Any) -> str:
    """One pydantic error as `dotted.path = value: what is allowed`."""
    *parents, last = location = [str(part) for part in item["loc"]] or ["recipe"]
    if item["type"] == "extra_forbidden":
        valid = _fields_at(parents)
        close = difflib.get_close_matches(last, valid, n=1)
        guess = f"; did you mean {close[0]}?" if close else ""
        return f"{_dotted(location)}: unknown key{guess} (valid here: {', '.join(valid)})"
    if item["type"] == "missing":
        return f"{_dotted(location)}: missing"
    if item["type"] == "value_error":
        return f"{_dotted(location)}: {item['ctx']['error']}"
    if item["type"] == "union_tag_invalid":
        return f"{_dotted(location)}.name = {item['ctx']['tag']!r}: allowed are {item['ctx']['expected_tags']}"
    return f"{_dotted(location)} = {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _dotted(location: Sequence[str]) -> str:
    """A location as people write it: the tags that pydantic adds for unions (their members' names) left out."""
    tags = {"full", "lora", "prompt_tuning", "str", "dict[str,any]", "TrainedTokenizer", "tuple[str, ...]"}
    return ".".join(part for part in location if part not in tags)


def _fields_at(location: Sequence[str]) -> list[str]:
    """The valid keys of the section at a location."""
    methods = {"full": FullMethod, "lora": LoraMethod, "prompt_tuning": PromptTuningMethod}
    model: Any = Recipe
    for part in location:
        if part in methods:
            model = methods[part]
        elif part == "TrainedTokenizer":
            model = TrainedTokenizer
        elif part in model.model_fields:
            annotation = model.model_fields[part].annotation
            for inner in (annotation, *get_args(annotation)):  # a section, or a section that may be left out
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    model = inner
    return list(model.model_fields)


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))
