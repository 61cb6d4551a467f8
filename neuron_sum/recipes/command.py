"""The commands `neuron-sum recipes list | show | check | schema`."""

import json
from typing import Annotated

import typer

from neuron_sum import console
from neuron_sum.command_group import CommandGroup

recipes = CommandGroup(
    "List, print and validate recipes.",
    {
        "list": f"{__name__}:list_recipes",
        "show": f"{__name__}:show",
        "check": f"{__name__}:check",
        "schema": f"{__name__}:schema",
    },
)
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a bundled recipe, or a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, such as train.learning_rate=1e-4."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="A change to the recipe, such as generate.num_beams=4."),
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base", help="Base model (folder or hub id) of an adapter. Default: the one that adapter_config.json names."
    ),
]


def list_recipes() -> None:
    """List the bundled recipes."""
    from neuron_sum.recipes.loading import load_recipe, shipped_recipes

    loaded = {name: load_recipe(name) for name in shipped_recipes()}
    table = console.table("recipe", "method", "description")
    table.columns[2].justify = "left"
    for name, recipe in loaded.items():
        table.add_row(name, recipe.method.name, recipe.description)
    console.emit({name: recipe.description for name, recipe in loaded.items()}, table)


def show(recipe: RecipeArgument, overrides: Overrides = None, sets: SetOption = None) -> None:
    """Print a recipe with every default that has an effect."""
    from neuron_sum.recipes.loading import load_recipe

    loaded = load_recipe(recipe, [*(overrides or []), *(sets or [])])
    text = loaded.to_yaml()
    if console.clean(text) != text:  # escapes are read back only from quoted text
        text = loaded.to_yaml(ascii_only=True)
    console.emit(loaded.resolved(), text.rstrip())


def check(recipe: RecipeArgument, overrides: Overrides = None, sets: SetOption = None) -> None:
    """Validate a recipe; list all errors and exit with 3 if it is invalid."""
    from neuron_sum.recipes.loading import load_recipe

    changes = [*(overrides or []), *(sets or [])]
    loaded = load_recipe(recipe, changes)
    details = {"recipe": loaded.name, "holds": True}
    console.emit(details, f"{loaded.name} is valid\nnext: {console.command('train', recipe, *changes)}")


def schema() -> None:
    """Print the JSON schema of a recipe, for editors and validators."""
    from neuron_sum.recipes.schema import json_schema

    found = json_schema()
    console.emit(found, json.dumps(found, indent=2))
