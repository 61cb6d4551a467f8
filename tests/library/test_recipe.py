"""Recipes: strict, all errors at once, overrides, extends, paths."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from neuron_sum.errors import RecipeError
from neuron_sum.recipes.loading import differences, load_recipe, load_resolved
from neuron_sum.recipes.schema import LoraMethod, PromptTuningMethod, json_schema

MINIMAL = {"name": "x", "model": {"name_or_path": "google/flan-t5-base"}}


def write(folder: Path, text: str, name: str = "r.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_recipe_is_frozen() -> None:
    recipe = load_recipe("tiny")
    with pytest.raises(ValidationError):
        recipe.train.learning_rate = 1.0


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "name: x\nmodel: {name_or_path: a/b}\n"
        "train: {learning_rat: 1, num_train_epochs: many, save_total_limit: 1}\n"
        "data: {max_examples: -3}\nmethod: {name: lorra}\n",
    )
    with pytest.raises(RecipeError) as raised:
        load_recipe(path, ["generate.num_beams=0", "nonsense"])
    message = raised.value.message
    assert "7 errors" in message
    for expected in (
        "train.learning_rat: unknown key; most similar: learning_rate (valid: ",
        "train.num_train_epochs = 'many': input should be a valid number",
        "train.save_total_limit = 1: input should be greater than or equal to 2",
        "data.max_examples = -3: input should be greater than or equal to 1",
        "method.name = 'lorra': valid values are 'full', 'lora', 'prompt_tuning'",
        "generate.num_beams = 0:",
        "'nonsense' is not an override; use key=value",
    ):
        assert expected in message
    assert raised.value.exit_code == 3


def test_a_former_key_is_rejected_with_the_keys_that_replace_it(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\nextends: tiny\ndata: {max_eval_examples: 3}\n")
    for name, overrides in ((path, []), ("tiny", ["data.max_eval_examples=3"])):
        with pytest.raises(RecipeError) as raised:
            load_recipe(name, overrides)
        expected = "data.max_eval_examples: unknown key; use max_validation_examples and max_test_examples instead"
        assert expected in raised.value.message


def _of_the_first_version(values: dict[str, dict[str, dict[str, object]]]) -> None:
    values["data"]["max_eval_examples"] = None  # type: ignore[assignment]
    values["compile"]["neuron"]["core"] = 0


def _before_the_choice_of_inline_weights(values: dict[str, dict[str, dict[str, object]]]) -> None:
    values["compile"]["neuron"]["inline_weights"] = False


@pytest.mark.parametrize("target", ["cpu", "inf2"])
@pytest.mark.parametrize("change", [_of_the_first_version, _before_the_choice_of_inline_weights])
def test_a_recipe_stored_with_former_defaults_is_read(
    tmp_path: Path, target: str, change: Callable[[dict[str, object]], None]
) -> None:
    recipe = load_recipe("tiny", [f"compile.target={target}"])
    values = recipe.model_dump(mode="json")  # as earlier versions stored it, with the values without effect
    change(values)
    path = Path(write(tmp_path, yaml.safe_dump(values)))
    stored = load_resolved(path)
    assert stored.compile.target == target
    chosen = stored.compile.neuron.inline_weights
    assert chosen is (False if change is _before_the_choice_of_inline_weights else None)
    again = Path(write(tmp_path, stored.to_yaml(), "again.yaml"))
    assert load_resolved(again) == (recipe if target == "cpu" else stored)
    assert load_recipe(str(path), ["train.seed=3"]).train.seed == 3
    with pytest.raises(RecipeError, match="requires target inf2"):
        load_recipe(str(path), ["compile.target=cpu", "compile.neuron.optlevel=1"])


def test_a_stored_recipe_has_no_values_without_effect() -> None:
    stored = yaml.safe_load(load_recipe("tiny").to_yaml())
    assert "neuron" not in stored["train"] | stored["compile"]
    assert "merge_until" not in stored["data"]
    assert stored["train"]["shapes"] == {"plan": "dynamic", "buckets": 4}
    with_effect = [
        "compile.target=trn1",
        "train.backend=neuron",
        "train.shapes={plan: fixed, sizes: [[8, 8]]}",
        "data.long=merge",
        "data.merge_until=9",
    ]
    recipe = load_recipe("tiny", with_effect)
    assert yaml.safe_load(recipe.to_yaml()) == recipe.model_dump(mode="json")


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        (["compile.target=inf2", "compile.neuron.optlevel=1"], "compile.target=cpu"),
        (["train.backend=neuron", "train.neuron.zero_1=true", "train.shapes.plan=packed"], "train.backend=torch"),
        (["train.shapes={plan: fixed, sizes: [[8, 8]]}"], "train.shapes.plan=dynamic"),
        (["data.long=merge", "data.merge_until=9"], "data.long=truncate"),
    ],
)
def test_a_change_removes_values_that_have_no_effect_with_it(settings: list[str], change: str) -> None:
    recipe = load_recipe("tiny", settings)
    left = set(differences(load_recipe("tiny"), load_recipe(recipe, [change])))
    assert left <= {"train.shapes.plan"}


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("5E-5", 5e-5), ("0.3", 0.3), ("1", 1.0), (".5e-3", 5e-4), ("-1e-4", None)]
)
def test_numbers_are_parsed_by_the_type_of_the_field(text: str, value: float | None) -> None:
    if value is None:
        with pytest.raises(RecipeError, match=r"train\.learning_rate"):
            load_recipe("tiny", [f"train.learning_rate={text}"])
    else:
        assert load_recipe("tiny", [f"train.learning_rate={text}"]).train.learning_rate == value


def test_types_are_strict() -> None:
    for override in ("train.bf16=1", "train.seed='7'", "train.max_steps=1.5", "data.path=3"):
        with pytest.raises(RecipeError):
            load_recipe("tiny", [override])


def test_a_changed_method_starts_from_its_defaults() -> None:
    assert load_recipe("tiny", ["method=lora"]).method == LoraMethod()
    assert load_recipe("flan-t5-base-lora", ["method.name=prompt_tuning"]).method == PromptTuningMethod()
    assert load_recipe("flan-t5-base-lora", ["method.r=8"]).method == LoraMethod(r=8)


def test_a_new_value_removes_dependent_values_of_the_parent(tmp_path: Path) -> None:
    own = load_recipe(
        write(
            tmp_path,
            "name: x\nextends: flan-t5-base-lora\nprompt: {template: 'Note: {dialogue}'}\n"
            "data: {source: csv, path: ., columns: {dialogue: talk}}\n",
        )
    )
    assert own.prompt.template == "Note: {dialogue}"
    assert own.prompt.preset is own.data.license is own.data.columns.id is None
    assert own.data.max_source_length == 512
    other = load_recipe("tiny", ["model.tokenizer=some/tokenizer", "model.name_or_path=a/b"])
    assert (other.model.config, other.model.tokenizer, other.model.name_or_path) == (None, "some/tokenizer", "a/b")
    assert load_recipe("tiny", ["model.name_or_path=a/b"]).model.tokenizer is None
    local = load_recipe("flan-t5-base-full", ["data.source=dialogsum", f"data.path={tmp_path}"])
    assert (local.data.path, local.data.license) == (str(tmp_path), None)
    assert load_recipe("flan-t5-base-full", ["data.max_examples=3"]).data.license == "CC BY-NC-SA 4.0"


def test_overrides_apply_in_any_order_and_a_conflict_is_reported() -> None:
    for overrides in (["method=lora", "method.r=8"], ["method.r=8", "method=lora"]):
        assert load_recipe("tiny", overrides).method == LoraMethod(r=8)
    with pytest.raises(RecipeError, match="another override sets data to a plain value"):
        load_recipe("tiny", ["data=3", "data.path=x"])


def test_an_existing_path_is_saved_as_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "tiny-base" / "checkpoint").mkdir(parents=True)
    assert load_recipe("tiny-lora").model.name_or_path == str(tmp_path / "runs" / "tiny-base" / "checkpoint")


def test_extends_merges_and_rejects_a_cycle(tmp_path: Path) -> None:
    write(tmp_path, "name: parent\nextends: tiny\ntrain: {learning_rate: 1.0e-3, max_steps: 7}\n", "parent.yaml")
    child = load_recipe(write(tmp_path, "name: child\nextends: parent.yaml\ntrain: {max_steps: 9}\n", "child.yaml"))
    assert (child.name, child.train.learning_rate, child.train.max_steps) == ("child", 1e-3, 9)
    assert child.data == load_recipe("tiny").data
    write(tmp_path, "name: a\nextends: b.yaml\n", "a.yaml")
    with pytest.raises(RecipeError, match="extends itself"):
        load_recipe(write(tmp_path, "name: b\nextends: a.yaml\n", "b.yaml"))


def test_paths_are_relative_to_the_file_or_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes" / "mine").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    path = write(tmp_path / "recipes", "name: x\nextends: tiny\ndata: {source: jsonl, path: mine}\n")
    monkeypatch.chdir(tmp_path)
    assert load_recipe(path).data.path == str(tmp_path / "recipes" / "mine")
    assert load_recipe(path, ["data.path=elsewhere"]).data.path == str(tmp_path / "elsewhere")
    assert load_recipe(path, ["data.path=../up"]).data.path == str(tmp_path.parent / "up")
    assert load_recipe(path, ["data.source=hub", "data.path=some/set"]).data.path == "some/set"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: x\nname: y\n", "duplicate key 'name'"),
        ("name: [", "not valid YAML"),
        ("- a\n", "a recipe is a mapping"),
        ("? [a, b]\n: c\n", "a key must be a plain word"),
        ("name: x\nextends: tiny\nmodel: &m {config: *m}\n", "contains itself"),
        ("name: x\nextends: tiny\ntrain: {learning_rate: .inf, seed: -1}\n", "2 errors"),
        ("name: x\n", "model: missing"),
        ("name: X Y\nextends: tiny\n", "name = 'X Y'"),
        ("name: x\nextends: tiny\nprompt: {template: no slot}\n", "prompt: "),
        ("name: x\nextends: tiny\nprompt: {preset: none-such}\n", "unknown preset 'none-such'"),
        ("name: x\nextends: tiny\nmodel: {name_or_path: a/b, config: {model_type: t5}}\n", "either name_or_path"),
        ("name: x\nextends: tiny\nprompt: {preset: course, template: '{dialogue}'}\n", "either preset or template"),
        ("name: x\nextends: tiny\ntrain: {fsdp: true}\nmethod: {name: lora}\n", "train.fsdp requires method full"),
        ("name: x\nextends: tiny\ndata: {source: csv}\n", "source 'csv' requires data.path"),
        ("name: x\nextends: tiny\ndata: {long: cut}\n", "data.long = 'cut'"),
        ("name: x\nextends: tiny\ndata: {merge_until: 9}\n", "merge_until requires long 'merge'"),
        ("name: x\nextends: smollm2-claims\ndata: {long: refuse}\n", "claims requires long 'truncate'"),
    ],
)
def test_invalid_recipes_are_rejected(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        load_recipe(write(tmp_path, text))


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe("tinny")
    assert raised.value.hint == "use tiny, the most similar name"


def test_differences_name_the_dotted_keys() -> None:
    one, other = load_recipe("tiny"), load_recipe("tiny", ["train.seed=1", "method=lora"])
    changed = differences(one, other)
    assert changed["train.seed"] == (42, 1)
    assert "method.r" in changed
    assert "data.source" not in changed


def test_the_schema_explains_its_fields() -> None:
    schema = json_schema()
    assert "evenly spaced" in schema["$defs"]["DataConfig"]["properties"]["max_examples"]["description"]


HEAD = "name: x\nextends: tiny\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (BOMB, r"r\.yaml:\d+:\d+: not valid YAML: more than 5000 values, counting those of aliases"),
        (MERGES, r"r\.yaml:\d+:\d+: not valid YAML: more than 5000 values"),
        (HEAD + "description: " + "[" * 90_000, r"r\.yaml:3:\d+: .*more than 30 levels"),
        (HEAD + "".join("  " * level + "a:\n" for level in range(300)), "more than 30 levels"),
        (HEAD + "a: " + "{a: " * 20_000, "more than 30 levels"),
        (HEAD + "train: {seed: " + "1" * 5000 + "}\n", r"r\.yaml:3:15: .* is not an integer of 64 bits"),
        (HEAD + "train: {seed: -" + "1" * 30 + "}\n", "is not an integer of 64 bits"),
        (HEAD + "train: {seed: 18446744073709551616}\n", "is not an integer of 64 bits"),
        (HEAD + "train: {seed: 4294967296}\n", "train.seed = 4294967296: "),
        (HEAD + "train: {learning_rate: 1e999}\n", "train.learning_rate = "),
        (HEAD + "train: {learning_rate: .nan}\n", "train.learning_rate = "),
        (HEAD + "model: {config: {d_model: .inf}}\n", "config must contain only finite numbers"),
        (HEAD + "# " + "x" * 200_000, "larger than 100,000 bytes"),
        ("\ufeff".encode("utf-16-le") + HEAD.encode("utf-16-le"), r"r\.yaml:1: not UTF-8 text"),
        (HEAD.encode() + b"description: \xff\n", r"r\.yaml:3: not UTF-8 text"),
        (HEAD + "description: a\0b\n", r"r\.yaml:3: not valid YAML: "),
        (HEAD + 'description: "a\\0b"\n', r"r\.yaml:3:14: .* contains the character '\\x00'"),
        (HEAD + 'data: {path: "a\\e[2J"}\n', r"r\.yaml:3:14: .* contains the character '\\x1b'"),
        (HEAD + 'description: "\\ud800"\n', r"contains the character '\\ud800'"),
        (HEAD + '"\\x9b": 1\n', r"contains the character '\\x9b'"),
        (HEAD + "description: !!python/object/apply:os.system [x]\n", r"r\.yaml:3:14: .*the tag .* is not supported"),
        (HEAD + "description: !!binary aGk=\n", "the tag 'tag:yaml.org,2002:binary' is not supported"),
        (HEAD + "train: {seed: !!int abc}\n", "the tag .* is not supported"),
        (HEAD + "---\n" + HEAD, r"r\.yaml:3:1: not valid YAML: but found another document"),
        (HEAD + "train:\n\tseed: 1\n", r"r\.yaml:4:1: not valid YAML: found character '\\t'"),
        (HEAD + "train: {<<: 5}\n", r"r\.yaml:3:\d+: not valid YAML: "),
        (HEAD + "train: {seed: *none}\n", r"r\.yaml:3:15: .*undefined alias"),
        (HEAD + "train: {bf16: yes}\n", "train.bf16 = 'yes': "),
        (HEAD + "train: {bf16: on}\n", "train.bf16 = 'on': "),
        (HEAD + "train: {seed: 0o7}\n", "train.seed = '0o7': "),
        (HEAD + "train: {seed: 010}\n", "train.seed = '010': "),
        (HEAD + "train: {seed: 0x1f}\n", "train.seed = '0x1f': "),
        (HEAD + "train: {seed: 1_000}\n", "train.seed = '1_000': "),
        (HEAD + "train: {seed: 12:30}\n", "train.seed = '12:30': "),
        ("name: " + "a" * 300 + "\nextends: tiny\n", "name = 'a+"),
        (HEAD + "a" * 1000 + ": 1\n", "a+…: unknown key"),
        (HEAD + "".join(f"key{number}: 1\n" for number in range(2000)), "2000 errors(.|\\n)*… and 1950 more"),
        ("name: x\nextends: 5\n", "extends = 5: not the name"),
        ("name: x\nextends: [tiny]\n", "not the name of a recipe"),
        ("name: x\nextends: " + "a" * 5000 + "\n", "recipe 'a+ not found"),
        ("", "a recipe is a mapping"),
        ("5", "a recipe is a mapping"),
        (HEAD + "data: {source: jsonl, path: ./" + "a" * 5000 + "}\n", "path = './a+.*File name too long"),
    ],
)
def test_hostile_yaml_is_rejected_with_its_line_in_bounded_time(
    tmp_path: Path, content: str | bytes, expected: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.process_time()
    with pytest.raises(RecipeError, match=expected) as error:
        load_recipe(str(path))
    assert time.process_time() - started < 5
    assert error.value.hint
    assert len(error.value.message) < 20_000


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.seed=" + "1" * 5000, "train.seed = '1+:1:1: not valid YAML: 1+ is not an integer of 64 bits"),
        ("description=" + "[" * 50_000, "more than 30 levels"),
        ("description=&a [*a]", "a value contains itself"),
        ("description=!!python/name:os.system", "the tag .* is not supported"),
        ("description=a\0b", "not valid YAML"),
        ("description=\ud800", "not valid YAML"),
        ("train.bf16=on", "train.bf16 = 'on': "),
        ("a." * 5000 + "a=1", "is not an override"),
        ("a" * 100_000, "is not an override"),
        ("=1", "is not an override"),
        ("train..seed=1", "train.: unknown key"),
        ("train=[]", "train = "),
        ("method=5", "method = 5"),
        ("method.name=[]", "method"),
    ],
)
def test_hostile_overrides_are_rejected(override: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected) as error:
        load_recipe("tiny", [override])
    assert len(error.value.message) < 2000


def test_recipes_that_extend_each_other_without_end(tmp_path: Path) -> None:
    for number in range(1, 30):
        write(tmp_path, f"name: x\nextends: r{number + 1}.yaml\n", f"r{number}.yaml")
    with pytest.raises(RecipeError, match="more than 10 recipes extend each other"):
        load_recipe(str(tmp_path / "r1.yaml"))
    with pytest.raises(RecipeError, match="extends itself"):
        load_recipe(write(tmp_path, "name: x\nextends: r.yaml\n"))


def test_types_of_yaml(tmp_path: Path) -> None:
    text = (
        "name: 'no'\nextends: tiny\ndescription: 2024-01-31\ndata: &d {max_examples: 5}\ntrain: {learning_rate: 1E-4}\n"
    )
    recipe = load_recipe(write(tmp_path, "\ufeff" + text))
    assert (recipe.name, recipe.description, recipe.data.max_examples) == ("no", "2024-01-31", 5)
    assert recipe.train.learning_rate == 1e-4
    merged = "name: x\nextends: tiny\ngenerate: &g {num_beams: 2, batch_size: 3}\n"
    assert load_recipe(write(tmp_path, merged + "train: {max_steps: 5}\n")).generate.num_beams == 2


@pytest.mark.parametrize(
    ("text", "value"), [(r"\t", "\t"), ("\t", "\t"), *((mark, mark) for mark in "|>#&*!%@`-?;,:[{"), ("'|'", "|")]
)
def test_an_override_of_a_text_may_be_an_indicator_of_yaml(text: str, value: str) -> None:
    assert load_recipe("tiny", ["data.source=csv", "data.path=/", f"data.delimiter={text}"]).data.delimiter == value


def test_an_override_of_a_text_that_is_not_yaml_is_the_text() -> None:
    assert load_recipe("tiny", ["description=a: b: @c"]).description == "a: b: @c"


def test_the_error_of_a_boolean_names_its_values() -> None:
    with pytest.raises(RecipeError, match=r"data\.skip_bad = 'yes': valid values are true, false"):
        load_recipe("tiny", ["data.skip_bad=yes"])
