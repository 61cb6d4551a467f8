"""Reads YAML with limits on size, nesting and aliases, in bounded time and memory."""

import re
from typing import Any

import yaml

from neuron_sum.errors import RecipeError

MAX_BYTES = 100_000
MAX_NODES = 5_000
MAX_DEPTH = 30
"""Limits of a recipe: its size, the number of its values after YAML aliases are replaced, and their nesting."""
SHOWN = 200
"""The most characters of a value in an error message."""

CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that no text of a recipe contains; YAML can write them as escapes."""
REMEDY = "see `neuron-sum recipes show tiny` for a complete recipe"


class _Loader(yaml.SafeLoader):
    """A SafeLoader for the types of YAML 1.2: `no`, 12:30 and 1_000 are texts, 1e-4 is a number.

    Duplicate keys, tags, control characters, and values beyond the limits are errors.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - of the class, as in the base class

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) not in (None, "!"):
            raise _error(f"the tag {event.tag!r:.{SHOWN}} is not supported", event)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _error(f"more than {MAX_DEPTH} levels of nested values", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise _error("a value contains itself", event)
        else:
            children = node.value if isinstance(node, yaml.CollectionNode) else []
            inner = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
            self._sizes[id(node)] = 1 + sum(self._sizes[id(part)] for part in inner)
        if self._sizes[id(node)] > MAX_NODES:
            raise _error(f"more than {MAX_NODES} values, counting those of aliases", event)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error("a key must be a plain word", key)
            if key.value in keys:
                raise _error(f"duplicate key {key.value!r:.{SHOWN}}", key)
            keys.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if found := CONTROLS.search(str(value)):
            raise _error(f"a text contains the character {found[0]!r}", node)
        return value

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """A float, or a decimal integer of up to 64 bits."""
        text = node.value
        if node.tag.endswith("float"):
            return float(text.replace(".inf", "inf").replace(".nan", "nan").lower())
        if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
            raise _error(f"{text:.40} is not an integer of 64 bits", node)
        return int(text)


def _error(problem: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9]\d*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?((\.\d+|\d+\.\d*)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$", re.ASCII), _first)
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def parse(text: str, place: str) -> Any:
    """The value of a YAML text.

    Args:
        text: One YAML document.
        place: The file, or the option, that contains the text.

    Raises:
        RecipeError: If it is not YAML or exceeds a limit, with the line after `place`.
    """
    if len(text) > MAX_BYTES:
        raise RecipeError(f"{place}: more than {MAX_BYTES:,} characters", REMEDY)
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = _line(error.problem or error.context or "unknown syntax")
        raise RecipeError(f"{place}{line}: not valid YAML: {problem:.{SHOWN}}", REMEDY) from error
    except yaml.YAMLError as error:  # a character that YAML excludes
        position = getattr(error, "position", 0)
        line = f":{text.count(chr(10), 0, position) + 1}"
        raise RecipeError(f"{place}{line}: not valid YAML: {_line(error):.{SHOWN}}", REMEDY) from error
    except (RecursionError, ValueError) as error:
        raise RecipeError(f"{place}: not valid YAML: {_line(error):.{SHOWN}}", REMEDY) from error


def _line(error: Exception | str) -> str:
    return re.sub(r"\s+", " ", str(error))
