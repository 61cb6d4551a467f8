"""`neuron-sum recipes list | show | check | schema`."""

import json
from typing import Annotated

import typer

from neuron_sum import console

recipes = typer.Typer(no_args_is_help=True, help="The shipped recipes, and whether your own holds.")
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, such as train.learning_rate=1e-4.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="A change to the recipe, such as generate.num_beams=4."),
]


@recipes.command("list")
def list_recipes() -> None:
    """List the shipped recipes."""
    from neuron_sum.recipes.loading import load_recipe, shipped_recipes

    loaded = {name: load_recipe(name) for name in shipped_recipes()}
    table = console.table("recipe", "method", "what it is")
    table.columns[2].justify = "left"
    for name, recipe in loaded.items():
        table.add_row(name, recipe.method.name, recipe.description)
    console.emit({name: recipe.description for name, recipe in loaded.items()}, table)


@recipes.command()
def show(recipe: RecipeArgument, overrides: Overrides = None, sets: SetOption = None) -> None:
    """Print a recipe with every default filled in."""
    from neuron_sum.recipes.loading import load_recipe

    loaded = load_recipe(recipe, [*(overrides or []), *(sets or [])])
    console.emit(loaded.model_dump(mode="json"), loaded.to_yaml().rstrip())


@recipes.command()
def check(recipe: RecipeArgument, overrides: Overrides = None, sets: SetOption = None) -> None:
    """Say whether a recipe holds; every fault at once, exit code 3."""
    from neuron_sum.recipes.loading import load_recipe

    loaded = load_recipe(recipe, [*(overrides or []), *(sets or [])])
    console.emit({"recipe": loaded.name, "holds": True}, f"{loaded.name} holds\nnext: neuron-sum train {recipe}")


@recipes.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors and validators."""
    from neuron_sum.recipes.schema import Recipe

    made = Recipe.model_json_schema()
    console.emit(made, json.dumps(made, indent=2))
