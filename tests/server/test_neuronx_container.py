"""The archive for the last AWS DJL container with Neuron: a checkpoint, and settings that DJL's class accepts."""

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from micro_models import LLAMA_CONFIG, MICRO_LLAMA

from neuron_sum.errors import ModelError, RecipeError
from neuron_sum.platform.matrix import ENDED_CONTAINERS
from neuron_sum.recipes.loading import load_recipe
from serving import neuronx_container
from serving.other_containers import check_long

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
CONTAINER = neuronx_container.CONTAINER

DJL_PYTHON = "ai.djl.python:python:0.34.0"
"""The version nearest to 0.30 on Maven Central with the Neuron handlers: 0.25 is the one before, 0.36 has none."""


@pytest.fixture(scope="module")
def llama_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def llama_lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_llama(tmp_path_factory.mktemp("llama-lora"), "method=lora")


def trained_llama(folder: Path, *overrides: str) -> Path:
    from neuron_sum.training.train import train

    (folder / "r.yaml").write_text(MICRO_LLAMA.replace("config: null", f"config: {json.dumps(LLAMA_CONFIG)}"))
    train(load_recipe(str(folder / "r.yaml"), [*overrides, "train.max_steps=1"]), folder / "run")
    return folder / "run"


def test_other_containers_do_not_merge_pieces() -> None:
    for long in ("truncate", "refuse"):
        check_long(load_recipe("tiny", [f"data.long={long}"]), CONTAINER)
    with pytest.raises(RecipeError, match=f"data.long = 'merge': {CONTAINER} does not split long dialogues"):
        check_long(load_recipe("tiny", ["data.long=merge"]), CONTAINER)


def test_a_checkpoint_is_packaged_for_the_frozen_container(
    neuron_sum: CommandLine, llama_run: Path, tmp_path: Path
) -> None:
    made = neuron_sum("package", str(llama_run), "--container", CONTAINER, "--output", "a.tar.gz", "--json")
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    recipe = load_recipe(str(llama_run / "recipe.yaml"))
    assert told["prompt"] == recipe.prompt.resolve().template
    ended = ENDED_CONTAINERS[CONTAINER]
    assert (told["image"], told["ended"]) == (ended.name, ended.ended)
    assert f"has not been supported since {ended.ended}" in made.stderr
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        names = archive.getnames()
        settings = archive.extractfile("serving.properties").read().decode()  # type: ignore[union-attr]
        for name in names[1:]:
            stored = archive.extractfile(name)
            assert stored is not None
            assert stored.read() == (llama_run / "checkpoint" / name).read_bytes()
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} < set(names)
    assert settings == told["properties"]
    assert properties_of(settings)["option.n_positions"] == str(
        recipe.data.max_source_length + recipe.generate.max_new_tokens
    )
    again = neuron_sum("package", str(llama_run), "--container", CONTAINER, "--output", "b.tar.gz", "--json")
    assert json.loads(again.stdout)["sha256"] == told["sha256"]


def test_an_adapter_is_merged_first(neuron_sum: CommandLine, llama_lora_run: Path) -> None:
    packing = ("package", str(llama_lora_run), "--container", CONTAINER)
    refused = neuron_sum(*packing)
    assert refused.returncode == 5
    assert refused.stderr.splitlines()[-1] == f"hint: run `neuron-sum merge {llama_lora_run}`"
    assert neuron_sum("merge", str(llama_lora_run)).returncode == 0
    made = neuron_sum(*packing, "--json")
    assert made.returncode == 0, made.stderr
    archive = llama_lora_run.with_name(f"run-{CONTAINER}.tar.gz")
    assert json.loads(made.stdout)["archive"] == str(archive.resolve())
    with tarfile.open(archive) as packed:
        assert "adapter_config.json" not in packed.getnames()


@pytest.mark.parametrize("run", ["micro_run", "micro_lora_run"])
def test_other_families_are_rejected(neuron_sum: CommandLine, request: pytest.FixtureRequest, run: str) -> None:
    refused = neuron_sum("package", str(request.getfixturevalue(run)), "--container", CONTAINER)
    assert refused.returncode == 5
    assert "serves only llama" in refused.stderr
    assert "neuron-sum compile RUN" in refused.stderr


def test_an_artifact_or_a_changed_setting_is_rejected(neuron_sum: CommandLine, llama_run: Path, tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "manifest.json").write_text("{}")
    assert neuron_sum("package", "artifact", "--container", CONTAINER).returncode == 9
    assert neuron_sum("package", str(llama_run), "--container", CONTAINER, "--set", "serve.max_items=1").returncode == 3


def test_checkpoints_that_do_not_fit_are_rejected(llama_run: Path) -> None:
    recipe = load_recipe(str(llama_run / "recipe.yaml"))
    config: dict[str, Any] = json.loads((llama_run / "checkpoint" / "config.json").read_text())
    with pytest.raises(neuronx_container.ModelError, match="has 128 positions"):
        neuronx_container.render(config | {"max_position_embeddings": 128}, recipe)
    with pytest.raises(neuronx_container.ModelError, match="cannot be shared by 2"):
        neuronx_container.render(config | {"num_attention_heads": 5}, recipe)


@pytest.mark.slow
def test_the_properties_class_of_djl_accepts_the_settings(llama_run: Path, tmp_path: Path) -> None:
    """The class with which the container's handler reads them, from DJL's jar."""
    recipe = load_recipe(str(llama_run / "recipe.yaml"))
    config = json.loads((llama_run / "checkpoint" / "config.json").read_text())
    settings = properties_of(neuronx_container.render(config, recipe))
    options = {name.removeprefix("option."): value for name, value in settings.items() if name.startswith("option.")}
    code = (
        "import json, sys, types\n"
        "package = types.ModuleType('djl_python')\n"  # the real __init__ imports the whole worker
        "package.__path__ = [sys.argv[1] + '/djl_python']\n"
        "sys.modules['djl_python'] = package\n"
        "from djl_python.properties_manager.tnx_properties import TransformerNeuronXProperties as Properties\n"
        "read = Properties(**json.loads(sys.argv[2]), model_dir='/opt/ml/model')\n"
        "print(json.dumps([read.model_dump(mode='json'), sorted(Properties.model_fields)]))\n"
    )
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(djl_python_jar(tmp_path)), json.dumps(options)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    read, fields = json.loads(made.stdout.splitlines()[-1])
    # Java reads these two (PyModel.java, the same in 0.30); the class ignores unknown settings.
    assert options.keys() - set(fields) == {"entryPoint", "model_loading_timeout"}
    assert read["model_id_or_path"] == "/opt/ml/model"
    assert read["n_positions"] == recipe.data.max_source_length + recipe.generate.max_new_tokens
    assert (read["dtype"], read["amp"]) == ("bf16", "bf16")
    assert (read["tensor_parallel_degree"], read["rolling_batch"]) == (neuronx_container.CORES, "auto")
    assert read["max_rolling_batch_size"] == max(recipe.compile.batch_sizes)


def djl_python_jar(folder: Path) -> Path:
    """DJL's worker from Maven Central."""
    group, name, version = DJL_PYTHON.split(":")
    place = Path(*group.split("."), name, version, f"{name}-{version}.jar")
    repository = Path.home() / ".m2" / "repository"
    if not (repository / place).is_file():
        if (maven := shutil.which("mvn")) is None:
            pytest.skip("no Maven to get DJL's jar with")
        got = subprocess.run(
            [maven, "--batch-mode", "--quiet", "dependency:get", f"-Dartifact={DJL_PYTHON}", "-Dtransitive=false"],
            cwd=folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if not (repository / place).is_file():
            pytest.skip(f"Maven cannot get {DJL_PYTHON}: {got.stdout[-300:]}")
    return repository / place


def properties_of(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read"),
        (b"[]", "a JSON list instead of an object"),
        (b"{}", "model_type is 'None'"),
        (b'{"model_type": 3}', "model_type is '3'"),
        (b'{"model_type": "llama"}', "max_position_embeddings is 'None'"),
        (b'{"model_type": "llama", "max_position_embeddings": "9"}', "max_position_embeddings is '9'"),
        (b'{"model_type": "llama", "max_position_embeddings": 9}', "num_attention_heads is 'None'"),
        (b"[" * 99_999, "cannot be read"),
    ],
)
def test_a_damaged_config_is_an_error_of_the_model(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=rf"config\.json.*{message}") as caught:
        neuronx_container._read_config(tmp_path)
    assert caught.value.hint


def test_a_link_in_a_checkpoint_is_not_packaged(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "secret.json").symlink_to("/etc/passwd")
    with pytest.raises(ModelError, match=r"secret\.json is a symbolic link"):
        list(neuronx_container._contents(tmp_path))
