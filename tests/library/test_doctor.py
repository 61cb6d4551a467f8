"""`doctor`: any machine compared with the matrix, any recipe on any instance; nothing is guessed or downloaded."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from neuron_sum.data.layouts import Shape
from neuron_sum.doctor import machine_check, recipe_check, upstream_bugs
from neuron_sum.doctor.local_check import check_here
from neuron_sum.doctor.machine_check import Check, check_machine
from neuron_sum.doctor.recipe_check import check_recipe
from neuron_sum.errors import PlatformError, RecipeError
from neuron_sum.models.dimensions import PUBLISHED, base_config
from neuron_sum.models.families import PROJECTIONS
from neuron_sum.platform.machine import Machine, describe_machine
from neuron_sum.platform.matrix import INSTANCES, PLATFORMS
from neuron_sum.recipes.loading import load_recipe, shipped_recipes
from neuron_sum.training.neuron.backend import NeuronBackend
from neuron_sum.training.neuron.memory import NeuronMemory, neuron_memory
from neuron_sum.training.train import prepare

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
ROW = PLATFORMS[0]
TRN1, TRN1_LARGE, INF2 = INSTANCES["ml.trn1.2xlarge"], INSTANCES["ml.trn1.32xlarge"], INSTANCES["ml.inf2.xlarge"]
NEURON = {**ROW.vendor_pins, "optimum-neuron": ROW.optimum_neuron}

LAPTOP = Machine(
    python="3.11.9",
    cpu="a CPU",
    cores=4,
    memory=16 * 10**9,
    free_memory=9 * 10**9,
    free_disk=10**12,
    neuron_devices=0,
    driver=None,
    managed=False,
    instance=None,
    java="17",
    tools=("java", "mvn", "git", "g++"),
    packages={**dict.fromkeys(machine_check.distributions()), **ROW.pins},
)
TRAINIUM = dataclasses.replace(
    LAPTOP,
    neuron_devices=1,
    driver=ROW.drivers.tested,
    instance="trn1.2xlarge",
    packages={**ROW.pins, **NEURON},
)


def named(checks: list[Check], name: str) -> Check:
    [found] = [check for check in checks if check.name == name]
    return found


def verdicts(machine: Machine) -> dict[str, str]:
    return {check.name: check.verdict for check in check_machine(machine, ROW)}


def test_a_plain_machine_passes() -> None:
    told = verdicts(LAPTOP)
    assert set(told.values()) == {"ok", "note"}
    assert told["neuron"] == "note"
    assert "neuron packages" not in told
    machine_check.raise_if_blocked(check_machine(LAPTOP, ROW))
    assert "--instance" in str(named(check_machine(LAPTOP, ROW), "neuron").remedy)


def test_a_trainium_machine_passes() -> None:
    assert {verdicts(TRAINIUM)[name] for name in ("neuron", "driver", "neuron packages", "packages")} == {"ok"}


@pytest.mark.parametrize(
    ("change", "name", "verdict", "remedy"),
    [
        ({"python": "3.12.4"}, "python", "blocks", "python3.11 -m venv"),
        ({"free_disk": 10**9}, "disk", "note", "20.0 GB"),
        ({"java": "21"}, "server", "differs", "openjdk-17"),
        ({"tools": ("git",)}, "server", "note", "openjdk-17"),
        ({"tools": ()}, "c++ compiler", "note", "g++"),
    ],
)
def test_a_difference_is_reported_with_its_remedy(change: dict[str, Any], name: str, verdict: str, remedy: str) -> None:
    check = named(check_machine(dataclasses.replace(LAPTOP, **change), ROW), name)
    assert check.verdict == verdict
    assert remedy in str(check.remedy)


def test_wrong_packages_are_reported_with_the_exact_command() -> None:
    newer = dataclasses.replace(LAPTOP, packages={**LAPTOP.packages, "torch": "2.9.1", "numpy": "2.1.0"})
    check = named(check_machine(newer, ROW), "packages")
    assert check.verdict == "differs"
    assert "torch 2.9.1 (2.8.0)" in check.found
    assert check.remedy == "pip install 'torch==2.8.0' 'numpy==1.26.4'"
    missing = dataclasses.replace(LAPTOP, packages={**LAPTOP.packages, "peft": None})
    assert named(check_machine(missing, ROW), "packages").verdict == "blocks"
    local = dataclasses.replace(LAPTOP, packages={**LAPTOP.packages, "torch": "2.8.0+cpu"})
    assert named(check_machine(local, ROW), "packages").verdict == "ok"


def test_a_neuron_machine_needs_all_of_the_sdk() -> None:
    bare = dataclasses.replace(TRAINIUM, driver=None, packages=LAPTOP.packages)
    checks = check_machine(bare, ROW)
    assert named(checks, "driver").verdict == "blocks"
    packages = named(checks, "neuron packages")
    assert packages.verdict == "blocks"
    for name, version in NEURON.items():
        assert f"'{name}=={version}'" in str(packages.remedy)
    with pytest.raises(PlatformError, match="driver, neuron packages") as raised:
        machine_check.raise_if_blocked(checks)
    assert raised.value.exit_code == 13
    assert "aws-neuronx-dkms" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("driver", "verdict"),
    [
        (None, "blocks"),
        ("2.19.5.0", "differs"),
        ("2.24.6.9", "differs"),
        ("2.24.7.0", "ok"),
        ("2.28.9.9", "ok"),
        ("2.29.0.0", "blocks"),
        ("2.31.2.0", "blocks"),
    ],
)
def test_a_driver_is_compared_with_the_window_of_the_runtime(driver: str | None, verdict: str) -> None:
    check = named(check_machine(dataclasses.replace(TRAINIUM, driver=driver), ROW), "driver")
    assert check.verdict == verdict
    if verdict != "ok":
        assert str(check.remedy).endswith("aws-neuronx-dkms=2.24.7.0")
    # A job cannot change its host: it reports the driver and continues.
    in_job = named(check_machine(dataclasses.replace(TRAINIUM, driver=driver, managed=True), ROW), "driver")
    assert in_job.verdict == ("ok" if verdict == "ok" else "differs")
    assert "apt-get" not in str(in_job.remedy)


def test_an_incomplete_sdk_on_a_plain_machine_differs() -> None:
    half = dataclasses.replace(LAPTOP, packages={**LAPTOP.packages, "neuronx-cc": "2.20.1.0", "torch-xla": "2.8.1"})
    told = verdicts(half)
    assert (told["neuron packages"], told["torch-xla"]) == ("differs", "note")


def test_the_machine_is_read_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SM_CURRENT_INSTANCE_TYPE", raising=False)
    for name in ("neuron0", "neuron1", "neuron_control"):
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev" / name).touch()
    for path, text in (
        ("sys/module/neuron/version", "2.24.7.0\n"),
        ("sys/devices/virtual/dmi/id/product_name", "trn1.32xlarge\n"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    seen = describe_machine(["pytest", "no-such-package"], tmp_path)
    assert (seen.neuron_devices, seen.driver, seen.instance) == (2, "2.24.7.0", "trn1.32xlarge")
    assert seen.packages == {"pytest": pytest.__version__, "no-such-package": None}
    assert min(seen.cores, seen.memory, seen.free_memory, seen.free_disk) > 0
    monkeypatch.setenv("SM_CURRENT_INSTANCE_TYPE", "ml.trn1.2xlarge")
    assert describe_machine([], tmp_path).instance == "trn1.2xlarge"
    monkeypatch.delenv("SM_CURRENT_INSTANCE_TYPE")
    (tmp_path / "sys/devices/virtual/dmi/id/product_name").write_text("Standard PC (i440FX + PIIX, 1996)\n")
    assert describe_machine([], tmp_path).instance is None
    assert describe_machine([], tmp_path / "nothing").driver is None


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in shipped_recipes()
        if (load_recipe(name).model.config is not None or load_recipe(name).model.name_or_path in PUBLISHED)
        and name not in ("smollm2-prompt-tuning", "smollm2-claims")  # for a Llama, not trained on Trainium
    ],
)
def test_shipped_recipes_fit_trainium_and_inferentia(name: str) -> None:
    for instance in (TRN1, TRN1_LARGE, INF2):
        machine_check.raise_if_blocked(check_recipe(load_recipe(name), instance, ROW))


def test_the_doctors_dimensions_are_the_published_ones() -> None:
    """flan-t5: the counts of model cards and docs/results.md; the others: according to their checkpoints."""
    counts = {
        name: recipe_check.parameters_of(recipe, base_config(recipe.model)).all
        for name, recipe in (
            (name, load_recipe("flan-t5-base-full", [f"model.name_or_path={name}"])) for name in PUBLISHED
        )
    }
    assert list(counts.values()) == [76_961_152, 247_577_856, 783_150_080, 1_100_048_384, 134_515_008]


def test_the_published_dimensions_equal_those_of_the_hub(shared_data: Path) -> None:
    for size in ("small", "base", "large"):
        values = json.loads((shared_data / "configs" / f"flan-t5-{size}.json").read_text())
        ours = PUBLISHED[f"google/flan-t5-{size}"]
        assert {key: values[key] for key in ours} == ours


@pytest.mark.parametrize(
    ("overrides", "instance", "name", "remedy"),
    [
        (["method=prompt_tuning"], TRN1, "train llama prompt_tuning", "method=lora"),
        (["method.target_modules=[q_proj,v_proj]"], TRN1, "method.target_modules", "null"),
        (["method=full"], TRN1, "memory of a NeuronCore", "method=lora"),
        (["train.per_device_train_batch_size=64"], TRN1, "memory of a NeuronCore", "per_device_train_batch_size="),
        (["method.target_modules=[q_proj,lm_head]"], TRN1, "method.target_modules", "null"),
        (["method=full", "train.fsdp=true"], TRN1_LARGE, "sharding", "train.fsdp=false"),
        (["compile.batch_sizes=[4096]"], INF2, "memory of a NeuronCore", "compile.batch_sizes"),
    ],
)
def test_impossible_recipes_block(overrides: list[str], instance: Any, name: str, remedy: str) -> None:
    checks = check_recipe(load_recipe("tinyllama-lora", overrides), instance, ROW)
    check = named(checks, name)
    assert check.verdict == "blocks"
    assert remedy in str(check.remedy)
    with pytest.raises(PlatformError, match=name):
        machine_check.raise_if_blocked(checks)


def test_the_remedy_for_memory_fits() -> None:
    recipe = load_recipe("flan-t5-base-full", ["train.per_device_train_batch_size=64"])
    check = named(check_recipe(recipe, TRN1, ROW), "memory of a NeuronCore")
    assert check.verdict == "blocks"
    smaller = load_recipe("flan-t5-base-full", str(check.remedy).split())
    assert named(check_recipe(smaller, TRN1, ROW), "memory of a NeuronCore").verdict == "ok"
    train = smaller.train
    assert train.per_device_train_batch_size * train.gradient_accumulation_steps >= 64


@pytest.mark.parametrize(
    ("plan", "sizes"), [("packed", "[[8192,256]]"), ("fixed", "[[8192,256]]"), ("buckets", "[[512,128],[8192,256]]")]
)
def test_the_longest_row_is_that_of_the_shape_plan(plan: str, sizes: str) -> None:
    given = [f"train.shapes.plan={plan}", f"train.shapes.sizes={sizes}"]
    check = named(check_recipe(load_recipe("trn1-flan-t5-base-full", given), TRN1, ROW), "memory of a NeuronCore")
    assert check.verdict == "blocks"
    one = load_recipe("trn1-flan-t5-base-full", [*given[:1], "train.shapes.sizes=null"])
    unset = named(check_recipe(one, TRN1, ROW), "memory of a NeuronCore")
    assert (unset.verdict, "may choose longer ones" in unset.found) == ("ok", plan == "packed")


def test_doctor_and_train_count_the_same_memory(
    micro: Path,
    micro_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(NeuronBackend, "check", staticmethod(lambda config, processes: None))
    monkeypatch.setenv("WORLD_SIZE", "2")
    neuron = ["train.backend=neuron", "train.shapes.plan=packed", "train.shapes.sizes=[[512,96]]"]
    for path in (micro, micro_llama):
        recipe = load_recipe(str(path), [*neuron, "train.per_device_train_batch_size=64"])
        told = named(check_recipe(recipe, TRN1, ROW), "memory of a NeuronCore").found
        prepare(recipe, tmp_path / "run")
        [line] = [line for line in capsys.readouterr().err.splitlines() if "each NeuronCore" in line]
        assert told.split(" (")[0] == line.removeprefix("memory ").split(" on each")[0]
        assert told.rpartition("activations ")[2] in line


def test_sharding_reduces_the_estimate() -> None:
    def memory(*layout: str) -> NeuronMemory:
        recipe = load_recipe("trn1-tinyllama-lora", ["method=full", *layout])
        config = base_config(recipe.model)
        return neuron_memory(
            config,
            recipe_check.parameters_of(recipe, config),
            Shape(768, 128),
            recipe.train,
            processes=32,
            core_available=TRN1_LARGE.core_memory,
            host_available=TRN1_LARGE.host_memory,
        )

    split, zero_1 = "train.neuron.tensor_parallel_size=8", "train.neuron.zero_1=true"
    whole, parts, sharded, both = memory(), memory(split), memory(zero_1), memory(split, zero_1)
    assert parts.core.weights == whole.core.weights / 8 == parts.core.gradients
    assert sharded.core.optimizer == whole.core.optimizer / 32 == both.core.optimizer
    assert sharded.core.weights == whole.core.weights
    assert whole.processes == 32
    assert whole.host > 32 * whole.core.weights


def test_the_layout_follows_the_recipe() -> None:
    split = ["train.neuron.tensor_parallel_size=2", "train.neuron.zero_1=true"]
    whole, halves = (check_recipe(load_recipe("trn1-tinyllama-lora", given), TRN1_LARGE, ROW) for given in ([], split))
    assert not [check for check in (*whole, *halves) if check.verdict in ("blocks", "differs")]
    assert named(whole, "memory of a NeuronCore").found != named(halves, "memory of a NeuronCore").found
    three = load_recipe("trn1-tinyllama-lora", ["train.neuron.tensor_parallel_size=3"])
    check = named(check_recipe(three, TRN1, ROW), "train.neuron.tensor_parallel_size")
    assert (check.verdict, "does not divide 2" in check.found) == ("blocks", True)
    torch = named(check_recipe(load_recipe("tiny"), TRN1, ROW), "train.backend")
    assert torch.verdict == "differs"
    assert load_recipe("tiny", str(torch.remedy).split()).train.backend == "neuron"


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *product(("t5", "llama"), ("method=full", "method=prompt_tuning", "method=lora")),
        ("t5", "q,wo"),
        ("llama", "q_proj,v_proj"),
        ("llama", "q_proj,lm_head"),
        ("llama", ",".join(PROJECTIONS)),
        ("llama", ",".join([*PROJECTIONS, "lm_head"])),
    ],
)
def test_the_doctor_blocks_exactly_the_recipes_that_train_rejects(
    micro: Path, micro_llama: Path, family: str, method: str
) -> None:
    given = [method] if "=" in method else ["method=lora", f"method.target_modules=[{method}]"]
    neuron = ["train.backend=neuron", "train.shapes.plan=fixed", "model.tokenizer.vocab_size=400"]
    for zero_1, split in product(("false", "true"), (1, 2)):
        layout = [f"train.neuron.zero_1={zero_1}", f"train.neuron.tensor_parallel_size={split}"]
        recipe = load_recipe(str(micro if family == "t5" else micro_llama), [*neuron, *given, *layout])
        try:
            NeuronBackend.check_model(base_config(recipe.model), recipe)
            refused = set()
        except RecipeError as error:
            lines = error.message.splitlines()[1:]
            refused = {line.split(":")[0].strip() for line in lines}
            assert lines and len(refused) == len(lines)
        checks = check_recipe(recipe, TRN1, ROW)
        blocked = {
            check.name.replace(f"train {family} prompt_tuning", "method")
            for check in checks
            if check.verdict == "blocks"
        }
        assert blocked == refused, layout


def test_upstream_bugs_apply_to_their_cases_only() -> None:
    def trapped(name: str, instance: Any, *overrides: str) -> set[str]:
        checks = check_recipe(load_recipe(name, overrides), instance, ROW)
        return {check.name.removeprefix("trap ") for check in checks if check.name.startswith("trap ")}

    full, lora = trapped("flan-t5-base-full", TRN1), trapped("flan-t5-base-lora", TRN1)
    llama, served = trapped("tinyllama-lora", TRN1_LARGE), trapped("flan-t5-base-full", INF2, "generate.num_beams=4")
    assert lora - full == {"reduction-argument"}
    assert {"save-unties-the-optimizer", "fp16", "compiler-killed"} <= full
    assert {"loss-divided-twice", "lora-targets", "shards"} <= llama
    assert not llama & {"fp16", "compiler-killed", "save-unties-the-optimizer"}
    assert served == {"fp16", "compiler-killed", "beams", "first-call"}
    assert "bf16-quality" in trapped("tiny", INF2, "compile.dtype=bf16")
    assert "checkpointing-t5" in trapped("flan-t5-large-full", TRN1)
    everything = [bug.name for bug in upstream_bugs.UPSTREAM_BUGS]
    assert len(set(everything)) == len(everything)
    assert set(everything) == full | lora | llama | served | {"bf16-quality", "checkpointing-t5"}
    assert all(bug.problem and bug.handling and bug.source for bug in upstream_bugs.UPSTREAM_BUGS)


def test_the_command_prints_tables_and_json(neuron_sum: CommandLine) -> None:
    words = ("doctor", "flan-t5-base-lora", "--instance", "trn1.2xlarge", "--region", "eu-west-1")
    made = neuron_sum(*words)
    assert made.returncode == 0, made.stderr
    assert "flan-t5-base-lora on ml.trn1.2xlarge, with neuron-sdk-2.26.1" in made.stdout
    told = json.loads(neuron_sum(*words, "--json").stdout)
    assert (told["recipe"], told["instance"], told["platform"]) == ("flan-t5-base-lora", "ml.trn1.2xlarge", ROW.name)
    assert {check["verdict"] for check in told["checks"]} <= {"ok", "note", "differs"}
    [image] = [check["found"] for check in told["checks"] if check["name"] == "image"]
    assert image == ROW.registry_images[0].uri("eu-west-1")


def test_the_command_exits_with_13_if_a_check_blocks(neuron_sum: CommandLine) -> None:
    made = neuron_sum("doctor", "tinyllama-lora", "method=prompt_tuning", "--instance", "ml.trn1.2xlarge", "--json")
    assert made.returncode == 13
    assert json.loads(made.stdout)["checks"]  # the complete answer is printed first
    error = json.loads(made.stderr.splitlines()[-1])["error"]
    assert error["exit_code"] == 13
    assert "train llama prompt_tuning" in error["message"]


def test_the_command_rejects_unknown_instances_and_regions(neuron_sum: CommandLine) -> None:
    assert neuron_sum("doctor", "tiny", "--instance", "ml.p5.48xlarge").returncode == 13
    assert neuron_sum("doctor", "tiny", "--instance", "ml.trn1.2xlarge", "--region", "mars-1").returncode == 13
    assert neuron_sum("doctor", "tinny", "--instance", "ml.trn1.2xlarge").returncode == 3
    assert neuron_sum("doctor", "--instance", "ml.trn1.2xlarge").returncode == 2


def test_the_default_instance_is_this_machine() -> None:
    assert machine_check.instance_of(TRAINIUM) == "trn1.2xlarge"
    assert machine_check.instance_of(LAPTOP) is None


def here(*overrides: str, recipe: str = "tiny") -> dict[str, str]:
    return {check.name: check.verdict for check in check_here(load_recipe(recipe, overrides), LAPTOP, ROW)}


def test_a_recipe_is_checked_on_a_machine_without_neuron_chips(tmp_path: Path) -> None:
    found = here()
    assert found == {
        **dict.fromkeys(
            ("machine", "disk", "python", "packages", "data", "base model", "memory of the training"), "ok"
        ),
        "neuron": "note",
    }
    whole_batches = ("train.fsdp=true", "train.per_device_train_batch_size=100000")
    assert here(*whole_batches)["memory of the training"] == "blocks"
    assert here("train.backend=neuron", "train.shapes.plan=packed")["train.backend"] == "blocks"
    assert here("data.source=jsonl", f"data.path={tmp_path}")["data"] == "ok"
    assert here("data.source=jsonl", f"data.path={tmp_path}/none")["data"] == "blocks"
    hub = here(recipe="flan-t5-base-lora")
    assert (hub["data"], hub["base model"]) == ("note", "note"), "neither is on this machine"
    assert here(f"model.name_or_path={tmp_path}/none")["base model"] == "blocks"


def test_the_command_checks_a_recipe_without_an_instance(neuron_sum: CommandLine) -> None:
    made = neuron_sum("doctor", "tiny", "--json")
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert (told["recipe"], told["instance"]) == ("tiny", None)
    assert {"packages", "data", "base model", "memory of the training"} <= {check["name"] for check in told["checks"]}
    assert neuron_sum("doctor", "tiny", "--region", "eu-west-1").returncode == 2


@pytest.mark.parametrize(
    ("instance", "devices", "told"),
    [
        ("trn1n.32xlarge", 16, "trn1n.32xlarge is not"),
        ("trn2.3xlarge", 0, "trn2.3xlarge is not"),
        ("inf1.xlarge", 0, "inf1.xlarge is not"),
        ("p9.large", 1, "p9.large is not"),
        (None, 2, "a machine with 2 Neuron chips is not"),
    ],
)
def test_a_neuron_instance_missing_from_the_table_is_reported(instance: str | None, devices: int, told: str) -> None:
    with pytest.raises(PlatformError, match=f"{told} in the table") as raised:
        machine_check.instance_of(dataclasses.replace(LAPTOP, instance=instance, neuron_devices=devices))
    assert all(name in str(raised.value.hint) for name in INSTANCES)


def test_a_newer_neuron_instance_is_rejected_with_its_chips() -> None:
    with pytest.raises(PlatformError, match="16 Trainium2 chips") as raised:
        machine_check.instance_of(dataclasses.replace(LAPTOP, instance="trn2.48xlarge", neuron_devices=16))
    assert "--instance with one of ml.trn1.2xlarge" in str(raised.value.hint)


def test_this_machine_is_described_without_loading_torch() -> None:
    code = (
        "import sys\n"
        "from neuron_sum.doctor import machine_check\n"
        "from neuron_sum.platform import machine\n"
        "seen = machine.describe_machine(machine_check.distributions())\n"
        "machine_check.check_machine(seen, machine_check.nearest_platform(seen))\n"
        "print(sorted({'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
