"""The platform matrix: complete, with sources, and equal to the constraints files.

test_containers.py compares the Dockerfiles with it.
"""

import re
from datetime import date
from importlib.metadata import distributions
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
from micro_models import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from xla_environment import LLAMA_METHODS, QWEN3_METHODS, T5_METHODS

from neuron_sum.errors import PlatformError
from neuron_sum.platform import matrix, support
from neuron_sum.platform.drivers import sagemaker_driver
from neuron_sum.platform.matrix import INSTANCES, PLATFORMS, Platform
from neuron_sum.platform.successors import NEWER_INSTANCES, SUCCESSORS
from neuron_sum.platform.support import CELLS, RETIREMENTS
from neuron_sum.recipes.schema import FullMethod, LoraMethod, PromptTuningMethod
from tools import pin_hashes

PLATFORM = pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.name)
TAG = re.compile(r"^(?P<torch>\d+\.\d+\.\d+)-.*-py3(?P<minor>\d+)-sdk(?P<sdk>\d+\.\d+\.\d+)-")


@PLATFORM
def test_constraints_match_the_platform_table(platform: Platform) -> None:
    pinned: dict[str, set[str]] = {}
    for line in (ROOT / "constraints" / f"{platform.name}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            specifiers = list(requirement.specifier)
            assert [s.operator for s in specifiers] == ["=="], f"{line}: not an exact version"
            pinned.setdefault(requirement.name.lower().replace("_", "-"), set()).add(specifiers[0].version)
    for name, version in platform.pins.items():
        assert pinned[name] == {version}


HASHED = re.compile(r"(?m)^([\w.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")


def hashed() -> dict[str, dict[str, str]]:
    """The versions in each requirements file of the images."""
    found = {}
    for path in sorted((ROOT / "constraints" / "images").iterdir()):
        text = "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("#"))
        assert HASHED.sub("", text) == "", f"{path.name}: a line without a hash"
        found[path.stem] = {name.lower(): version for name, version, _ in HASHED.findall(text)}
    return found


def test_images_install_the_exact_versions_with_hashes() -> None:
    files = hashed()
    pinned = {name: (ROOT / "constraints" / name).read_text() for name in (f"{PLATFORMS[0].name}.txt", "xla.txt")}
    assert files["common"] | files["source"] == pin_hashes.pins(pinned[f"{PLATFORMS[0].name}.txt"])
    assert files["neuron"] == pin_hashes.pins(pinned["xla.txt"])
    assert files["torch-cpu"] == {"torch": PLATFORMS[0].pins["torch"]}
    assert files["builder"].items() <= files["common"].items()
    everything = files["common"] | files["source"] | files["neuron"]
    assert not {name for name in everything if name in pin_hashes.PROVIDED or name.startswith("nvidia-")}


def test_the_images_need_no_package_beyond_the_pins() -> None:
    """They are installed with --no-deps."""
    files = hashed()
    pinned = {canonicalize_name(name) for versions in files.values() for name in versions}
    missing = set()
    for installed in distributions():
        if canonicalize_name(installed.name) not in pinned | {"neuron-sum"}:
            continue
        for requirement in map(Requirement, installed.requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": "", "python_version": "3.11"}):
                missing |= {canonicalize_name(requirement.name)} - pinned
    missing -= {name for name in missing if name == "triton" or name.startswith("nvidia-")}  # torch's, with CUDA only
    assert not missing


@PLATFORM
def test_tags_and_versions_of_images_match_the_platform(platform: Platform) -> None:
    stages = [image.stage for image in platform.registry_images]
    assert set(stages) == {"train", "serve"}
    for image in platform.registry_images:
        tag = TAG.match(image.tag)
        assert tag, image.tag
        assert image.versions["neuron-sdk"] == tag["sdk"]
        assert image.versions["torch"] == tag["torch"] == platform.pins["torch"]
        assert image.versions["python"] == f"3.{tag['minor']}"
        assert image.versions["python"] in platform.python
    for stage in set(stages):  # the first image of a stage is that of the platform
        first = next(image for image in platform.registry_images if image.stage == stage)
        assert first.versions["neuron-sdk"] == platform.neuron_sdk
        for name, version in platform.vendor_pins.items():
            assert first.versions.get(name, version) == version


@PLATFORM
def test_the_serving_image_of_inf2_is_in_the_registry_table(platform: Platform) -> None:
    serve = next(image for image in platform.registry_images if image.stage == "serve")
    assert platform.serving_images["inf2"].name == f"public.ecr.aws/neuron/{serve.repository}:{serve.tag}"


def test_an_image_has_a_name_in_every_region() -> None:
    image = PLATFORMS[0].registry_images[0]
    for region, account in matrix.REGISTRY_ACCOUNTS.items():
        assert re.fullmatch(r"\d{12}", account)
        assert image.uri(region).startswith(f"{account}.dkr.ecr.{region}.amazonaws.com")
    assert ".amazonaws.com.cn/" in image.uri("cn-north-1")
    with pytest.raises(PlatformError, match="mars-1") as raised:
        image.uri("mars-1")
    assert "us-east-1" in str(raised.value.hint)


def test_instances_have_the_published_figures() -> None:
    """aws-neuron-sdk, about-neuron/arch/neuron-hardware: name, cores, vCPUs, host GiB."""
    published = {
        "ml.trn1.2xlarge": (2, 8, 32),
        "ml.trn1.32xlarge": (32, 128, 512),
        "ml.inf2.xlarge": (2, 4, 16),
        "ml.inf2.8xlarge": (2, 32, 128),
        "ml.inf2.24xlarge": (12, 96, 384),
        "ml.inf2.48xlarge": (24, 192, 768),
    }
    assert {i.name: (i.neuron_cores, i.vcpus, i.host_gib) for i in INSTANCES.values()} == published
    assert {instance.core_memory for instance in INSTANCES.values()} == {16 * 2**30}
    assert matrix.find_instance("inf2.xlarge") is INSTANCES["ml.inf2.xlarge"]
    with pytest.raises(PlatformError, match=r"ml\.g5") as raised:
        matrix.find_instance("ml.g5.xlarge")
    assert "ml.trn1.2xlarge" in str(raised.value.hint)
    for name in ("ml.trn2.48xlarge", "trn2.48xlarge"):
        with pytest.raises(PlatformError, match="16 Trainium2 chips; neuron-sum's platform is for Trainium") as raised:
            matrix.find_instance(name)
        assert "ml.trn1.2xlarge" in str(raised.value.hint)


def test_what_is_known_about_the_drivers_of_sagemaker_hosts() -> None:
    drivers = PLATFORMS[0].drivers
    endpoint = sagemaker_driver("ml.inf2.xlarge", drivers) or ""
    assert "driver 2.19" in endpoint and drivers.tested in endpoint and f"before {drivers.below}" in endpoint
    assert "is not documented" in (sagemaker_driver("ml.trn1.2xlarge", drivers) or "")
    assert sagemaker_driver("ml.c7i.4xlarge", drivers) is None


def test_the_matrix_has_every_cell_once() -> None:
    methods = {model.model_fields["name"].default for model in (FullMethod, LoraMethod, PromptTuningMethod)}
    assert set(get_args(support.Method)) == methods
    wanted = set(product(get_args(support.Family), methods, get_args(support.Stage)))
    assert len(CELLS) == len(wanted)
    assert {(cell.family, cell.method, cell.stage) for cell in CELLS} == wanted
    assert set(support.FAMILIES_OF_STAGE) == set(get_args(support.Stage))
    for cell in CELLS:
        assert support.find_cell(cell.family, cell.method, cell.stage) is cell


def test_cells_marked_as_run_on_xla_match_the_tests() -> None:
    """tests/library/test_neuron.py trains these methods to the end, resumes them, and reads their output."""
    proven = {*product(["t5"], T5_METHODS), *product(["llama"], LLAMA_METHODS), *product(["qwen3"], QWEN3_METHODS)}
    seen = {(cell.family, cell.method, cell.stage) for cell in CELLS if cell.evidence == "run on XLA:CPU"}
    assert seen == {(family, method, "train") for family, method in proven}


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.family}-{cell.method}-{cell.stage}")
def test_a_cell_has_a_source_or_is_marked_as_unknown(cell: support.Cell) -> None:
    assert cell.note
    assert (cell.source is None) == (cell.works is None) == (cell.evidence == "none")
    assert set(cell.retirements) <= set(RETIREMENTS)
    assert cell.status == ("ended" if cell.stage == "train" else "maintenance")


@pytest.mark.parametrize("name", RETIREMENTS)
def test_a_retirement_has_a_date_a_release_and_a_source(name: str) -> None:
    retirement = RETIREMENTS[name]
    assert retirement.status in support.STATUSES[1:]
    assert date.fromisoformat(retirement.since) < date.fromisoformat(retirement.checked)
    assert re.fullmatch(r"2\.\d\d", retirement.release)
    assert retirement.source and retirement.means
    used = {name for cell in CELLS for name in cell.retirements} | {n for row in PLATFORMS for n in row.retirements}
    assert name in used or name == "transformers-neuronx"  # which nothing here uses any more


def test_the_platform_page_matches_the_tables() -> None:
    """docs/platform.md matches the tables: retirements with their date, instances, images, cells."""
    text = " ".join((ROOT / "docs" / "platform.md").read_text().split())
    for retirement in RETIREMENTS.values():
        assert f"| {retirement.what} | {retirement.status} | {retirement.since} | {retirement.release} |" in text
    for instance in INSTANCES.values():
        assert f"| {instance.name} | {instance.neuron_cores} | {instance.vcpus} | {instance.host_gib} |" in text
    for newer in NEWER_INSTANCES.values():
        row = f"| {newer.name} | {newer.chips} | {newer.neuron_cores} | {newer.vcpus} | {newer.host_gib} |"
        assert row in text and newer.name not in INSTANCES
    for library in SUCCESSORS:
        assert f"| {library.what} | {library.version} | {library.status} | {library.chips} |" in text
    for image in PLATFORMS[0].registry_images:
        assert f"`{image.repository}:{image.tag}`" in text
    names = {
        "t5": "T5",
        "llama": "Llama",
        "mistral": "Mistral",
        "qwen2": "Qwen2",
        "qwen3": "Qwen3",
        "smollm3": "SmolLM3",
    }
    names |= {"full": "full", "lora": "LoRA", "prompt_tuning": "prompt tuning"}
    worded = {True: "yes", False: "no", None: "no source says"}
    for family, method in product(get_args(support.Family), get_args(support.Method)):
        [row] = re.findall(rf"\| {names[family]} \| {names[method]}[^|]*\|([^|]+)\|([^|]+)\|([^|]+)\|", text)
        for said, stage in zip(row, get_args(support.Stage), strict=True):
            cell = support.find_cell(family, method, stage)
            seen = "" if cell.works is None else f": {cell.evidence}"
            assert said.strip().startswith(f"{worded[cell.works]}{seen}")


def test_no_version_of_the_table_is_written_twice() -> None:
    """In code, a vendor's version is in platform/matrix.py only."""
    versions = {*PLATFORMS[0].vendor_pins.values(), *PLATFORMS[0].system_packages.values()}
    for path in (path for folder in ("neuron_sum", "compile", "serving") for path in (ROOT / folder).rglob("*.py")):
        if path != Path(matrix.__file__):
            assert not [version for version in versions if version in path.read_text()], path
