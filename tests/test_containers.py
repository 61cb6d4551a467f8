"""What our image is built from, and what AWS's last DJL container with Neuron is given."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from conftest import LLAMA_CONFIG, MICRO_LLAMA, ROOT

from neuron_sum.artifact import Artifact
from neuron_sum.recipe import ServeConfig
from neuron_sum.recipe_loading import load_recipe
from neuron_sum.stack import ENDED_CONTAINERS, PLATFORMS
from serving import djl, dockerfile, local, neuronx_container, package, properties

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
TARGETS: tuple[dockerfile.Target, ...] = ("cpu", "inf2")
CONTAINER = neuronx_container.CONTAINER
VERSION = re.compile(r"\d+\.\d+(?:\.\d+)*")
ADDRESSES = {"0.0.0.0", "127.0.0.1"}
NOBODY = "65534"

DJL_PYTHON = "ai.djl.python:python:0.34.0"
"""The nearest to 0.30 that Maven Central has with the Neuron handlers: 0.25 is the one before, 0.36 is without."""


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {target: tmp_path_factory.mktemp("images") / target for target in TARGETS}
    for target, folder in folders.items():
        dockerfile.write_context(target, folder)  # type: ignore[arg-type]
    return folders


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


@pytest.mark.parametrize("target", TARGETS)
def test_every_version_is_the_tables(contexts: dict[str, Path], target: str) -> None:
    template = (Path(dockerfile.__file__).parent / dockerfile.TEMPLATE).read_text()
    assert set(VERSION.findall(template)) <= ADDRESSES
    platform = PLATFORMS[0]
    known = repr((platform, djl.VERSION, dockerfile.__version__))
    made = (contexts[target] / "Dockerfile").read_text()
    assert {version for version in VERSION.findall(made) if version not in known} <= ADDRESSES
    installed = made.partition("--no-index")[2].partition("COPY")[0]
    for name, version in (platform.pins | (platform.vendor_pins if target == "inf2" else {})).items():
        assert f"{name}=={version}" in installed.split()
    assert f"FROM {platform.serving_images[target].name}\n" in made
    assert max(len(line) for line in made.splitlines() if line.startswith("#")) <= 120


@pytest.mark.parametrize("target", TARGETS)
def test_the_folder_is_all_that_a_build_needs(contexts: dict[str, Path], target: str) -> None:
    context = contexts[target]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (context / "Dockerfile").read_text(), re.MULTILINE)
    for source in " ".join(copied).split():
        assert (context / source).exists(), source
    assert not [path for path in context.rglob("*") if path.name == "__pycache__" or path.name.startswith(".")]
    tracked = subprocess.run(
        ["git", "ls-files", *dockerfile.PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in tracked:
        if (ROOT / name).exists():
            assert (context / "source" / name).read_bytes() == (ROOT / name).read_bytes()
    pins = (context / "constraints.txt").read_text()
    assert pins.startswith((ROOT / "constraints" / f"{PLATFORMS[0].name}.txt").read_text())
    assert ("torch-neuronx==" in pins) == (target == "inf2")


def test_the_builder_needs_no_more_than_it_installs(contexts: dict[str, Path]) -> None:
    source = contexts["cpu"] / "source"
    installed = re.findall(r"constraint constraints.txt ([a-z]+)$", (source.parent / "Dockerfile").read_text(), re.M)
    assert installed == ["rich"]
    code = (
        "import sys\n"
        "site = sys.argv[1]\n"
        "sys.path.append(site)\n"
        "import serving.djl\n"
        "files = [(name, getattr(module, '__file__', None) or '') for name, module in sys.modules.items()]\n"
        "print(sorted({name.split('.')[0] for name, file in files if file.startswith(site)}), serving.__file__)\n"
    )
    made = subprocess.run(
        [sys.executable, "-S", "-c", code, sysconfig.get_path("purelib")],
        cwd=source, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert made.stdout.strip() == f"['rich'] {source / 'serving' / '__init__.py'}"


@pytest.mark.parametrize("target", TARGETS)
def test_what_sagemaker_is_told(contexts: dict[str, Path], target: str) -> None:
    made = (contexts[target] / "Dockerfile").read_text()
    labels = re.findall(r'^LABEL com\.amazonaws\.sagemaker\.capabilities\.(\S+)="true"$', made, re.MULTILINE)
    assert labels == (["accept-bind-to-port", "multi-models"] if target == "cpu" else ["accept-bind-to-port"])
    assert re.findall(r"^USER (\S+)$", made, re.MULTILINE) == ([dockerfile.USER] if target == "cpu" else [])
    assert made.endswith('ENTRYPOINT ["/bin/bash", "/opt/neuron-sum/entrypoint"]\nCMD ["serve"]\n')
    assert environment_of(made)[djl.HOME_VARIABLE] == str(dockerfile.HOME)


def test_java_is_started_as_on_this_machine() -> None:
    command = dockerfile.render_entrypoint().partition("exec java")[2].replace("\\\n", " ")
    here = [option for option in local.java_options(dockerfile.TEMPORARY) if str(local.CONFIGURATION) not in option]
    given = shlex.split(command)
    assert [option for option in given if option in here] == here
    assert f"-Dlog4j.configurationFile={dockerfile.OURS / local.CONFIGURATION.name}" in given
    assert given[-4:] == ["-cp", f"{dockerfile.HOME / djl.LIBRARIES}/*", djl.MAIN_CLASS, "${model[@]}"]


def test_only_a_context_of_ours_is_replaced(neuron_sum: CommandLine, tmp_path: Path) -> None:
    first = neuron_sum("dockerfile", "--target", "inf2", "--json")
    assert json.loads(first.stdout) == {"folder": "image-inf2", "target": "inf2"}
    (tmp_path / "image-inf2" / "left").touch()
    assert neuron_sum("dockerfile", "--target", "inf2").returncode == 0
    assert not (tmp_path / "image-inf2" / "left").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "Dockerfile").write_text("FROM scratch\n")
    refused = neuron_sum("dockerfile", "--output", "mine")
    assert refused.returncode == 6
    assert (tmp_path / "mine" / "Dockerfile").read_text() == "FROM scratch\n"


def test_other_arguments_are_run_and_a_missing_model_is_told(tmp_path: Path) -> None:
    script = placed(tmp_path, tmp_path / "none", tmp_path / "model")
    echo = subprocess.run(["bash", script, "echo", "serve me"], capture_output=True, text=True, check=False)
    assert (echo.returncode, echo.stdout) == (0, "serve me\n")
    lone = subprocess.run(["bash", script, "serve"], capture_output=True, text=True, check=False)
    assert lone.returncode == 1
    assert "holds no serving.properties" in lone.stderr


def test_the_script_becomes_a_server_that_ends_on_sigterm(
    djl_serving: Path, contexts: dict[str, Path], tmp_path: Path
) -> None:
    """In this machine's places: with no model, as a multi-model endpoint starts, on the port that it is told."""
    (tmp_path / "model").mkdir()
    script, port = placed(tmp_path, djl_serving, tmp_path / "model"), free_port()
    environment = environment_of((contexts["cpu"] / "Dockerfile").read_text()) | {
        "PATH": os.environ["PATH"],
        "MODEL_SERVER_HOME": str(tmp_path),
        "SERVING_INFERENCE_ADDRESS": f"http://127.0.0.1:{port}",
        "SAGEMAKER_MULTI_MODEL": "true",
    }
    with subprocess.Popen(["bash", script], env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            ping = answered(server, lambda: httpx.get(f"http://127.0.0.1:{port}/ping", timeout=5, trust_env=False))
            assert ping.status_code == 200
            assert psutil.Process(server.pid).name() == "java"
            server.send_signal(signal.SIGTERM)
            said, _ = server.communicate(timeout=local.STOP_LIMIT_S)
        finally:
            server.kill()
    assert ", 0 not answered" in said


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_process_1_of_the_containers_own_layout(
    djl_serving: Path, contexts: dict[str, Path], request: pytest.FixtureRequest, tmp_path: Path, target: str
) -> None:
    """The entrypoint as it was written: /opt, /tmp, process numbers and network of its own, the Dockerfile's variables.

    For cpu an ordinary user serves a model. For inf2 root starts without one, for none is compiled for it here.
    """
    model = tmp_path / "model"
    model.mkdir()
    if target == "cpu":
        artifact: Artifact = request.getfixturevalue("lora_artifact")
        package.write_archive(artifact, ServeConfig(), tmp_path / "model.tar.gz")
        package.unpack(tmp_path / "model.tar.gz", model)
    with container(contexts[target], djl_serving, model, NOBODY if target == "cpu" else "0") as server:
        first = answered(server, lambda: psutil.Process(server.pid).children()[0])

        def curl(*arguments: str) -> str:
            return subprocess.run(
                ["nsenter", "--net", "--target", str(first.pid), "curl", "--silent", "--fail-with-body", *arguments],
                capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip

        url = f"http://127.0.0.1:{dockerfile.PORT}"
        answered(server, lambda: curl(f"{url}/ping"))
        assert first.name() == "java"
        assert psutil.Process(first.pid).uids().real == int(NOBODY if target == "cpu" else "0")
        assert f"NSpid:\t{first.pid}\t1\n" in Path(f"/proc/{first.pid}/status").read_text()
        if target == "cpu":
            body = json.dumps({"inputs": "#Person1#: Hello.", "parameters": {"max_new_tokens": 2}})
            asked = ("--header", "Content-Type: application/json", "--data", body, f"{url}/invocations")
            [summary] = json.loads(answered(server, lambda: curl(*asked)))
            assert summary["output_tokens"] == 2
        first.send_signal(signal.SIGTERM)
        said, _ = server.communicate(timeout=local.STOP_LIMIT_S)
    assert ", 0 not answered" in said


def test_a_checkpoint_is_packed_for_the_ended_container(
    neuron_sum: CommandLine, llama_run: Path, tmp_path: Path
) -> None:
    made = neuron_sum("package", str(llama_run), "--container", CONTAINER, "--output", "a.tar.gz", "--json")
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    recipe = load_recipe(str(llama_run / "recipe.yaml"))
    assert told["prompt"] == recipe.prompt.resolve().template
    ended = ENDED_CONTAINERS[CONTAINER]
    assert (told["image"], told["ended"]) == (ended.name, ended.ended)
    assert f"no support since {ended.ended}" in made.stderr
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
    assert refused.stderr.splitlines()[-1] == f"hint: neuron-sum merge {llama_lora_run}"
    assert neuron_sum("merge", str(llama_lora_run)).returncode == 0
    made = neuron_sum(*packing, "--json")
    assert made.returncode == 0, made.stderr
    archive = llama_lora_run.with_name(f"run-{CONTAINER}.tar.gz")
    assert json.loads(made.stdout)["archive"] == str(archive.resolve())
    with tarfile.open(archive) as packed:
        assert "adapter_config.json" not in packed.getnames()


@pytest.mark.parametrize("run", ["micro_run", "micro_lora_run"])
def test_other_families_are_refused(neuron_sum: CommandLine, request: pytest.FixtureRequest, run: str) -> None:
    refused = neuron_sum("package", str(request.getfixturevalue(run)), "--container", CONTAINER)
    assert refused.returncode == 5
    assert "serves llama alone" in refused.stderr
    assert "neuron-sum compile RUN" in refused.stderr


def test_an_artifact_or_a_change_is_refused(neuron_sum: CommandLine, llama_run: Path, tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "manifest.json").write_text("{}")
    assert neuron_sum("package", "artifact", "--container", CONTAINER).returncode == 9
    assert neuron_sum("package", str(llama_run), "--container", CONTAINER, "--set", "serve.max_items=1").returncode == 3


def test_what_does_not_fit_is_refused(llama_run: Path) -> None:
    recipe = load_recipe(str(llama_run / "recipe.yaml"))
    config: dict[str, Any] = json.loads((llama_run / "checkpoint" / "config.json").read_text())
    with pytest.raises(neuronx_container.ModelError, match="has 128 positions"):
        neuronx_container.render(config | {"max_position_embeddings": 128}, recipe)
    with pytest.raises(neuronx_container.ModelError, match="cannot be shared by 2"):
        neuronx_container.render(config | {"num_attention_heads": 5}, recipe)


@pytest.mark.slow
def test_djls_own_class_takes_the_settings(llama_run: Path, tmp_path: Path) -> None:
    """The class that the container's handler reads them with, from DJL's own jar."""
    recipe = load_recipe(str(llama_run / "recipe.yaml"))
    config = json.loads((llama_run / "checkpoint" / "config.json").read_text())
    settings = properties_of(neuronx_container.render(config, recipe))
    options = {name.removeprefix("option."): value for name, value in settings.items() if name.startswith("option.")}
    code = (
        "import json, sys, types\n"
        "package = types.ModuleType('djl_python')\n"  # its own __init__ imports the whole worker
        "package.__path__ = [sys.argv[1] + '/djl_python']\n"
        "sys.modules['djl_python'] = package\n"
        "from djl_python.properties_manager.tnx_properties import TransformerNeuronXProperties as Properties\n"
        "read = Properties(**json.loads(sys.argv[2]), model_dir='/opt/ml/model')\n"
        "print(json.dumps([read.model_dump(mode='json'), sorted(Properties.model_fields)]))\n"
    )
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(djl_python_jar(tmp_path)), json.dumps(options)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    read, fields = json.loads(made.stdout.splitlines()[-1])
    # Java reads these two (PyModel.java, the same in 0.30); the class passes over what it does not know.
    assert options.keys() - set(fields) == {"entryPoint", "model_loading_timeout"}
    assert read["model_id_or_path"] == "/opt/ml/model"
    assert read["n_positions"] == recipe.data.max_source_length + recipe.generate.max_new_tokens
    assert (read["dtype"], read["amp"]) == ("bf16", "bf16")
    assert (read["tensor_parallel_degree"], read["rolling_batch"]) == (neuronx_container.CORES, "auto")
    assert read["max_rolling_batch_size"] == max(recipe.compile.batch_sizes)


def djl_python_jar(folder: Path) -> Path:
    """DJL's worker as Maven Central has it."""
    group, name, version = DJL_PYTHON.split(":")
    place = Path(*group.split("."), name, version, f"{name}-{version}.jar")
    repository = Path.home() / ".m2" / "repository"
    if not (repository / place).is_file():
        if (maven := shutil.which("mvn")) is None:
            pytest.skip("no Maven to get DJL's jar with")
        got = subprocess.run(
            [maven, "--batch-mode", "--quiet", "dependency:get", f"-Dartifact={DJL_PYTHON}", "-Dtransitive=false"],
            cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if not (repository / place).is_file():
            pytest.skip(f"Maven cannot get {DJL_PYTHON}: {got.stdout[-300:]}")
    return repository / place


def properties_of(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


def environment_of(made: str) -> dict[str, str]:
    """What a Dockerfile sets with ENV."""
    [block] = re.findall(r"^ENV ((?:.*\\\n)*.*)$", made, re.MULTILINE)
    return dict(item.split("=", 1) for item in shlex.split(block.replace("\\\n", " ")))


def placed(folder: Path, home: Path, model: Path) -> Path:
    """The entrypoint with this machine's places."""
    (folder / "t").mkdir()
    text = dockerfile.render_entrypoint()
    for there, here in (
        (dockerfile.OURS / local.CONFIGURATION.name, local.CONFIGURATION),
        (dockerfile.HOME, home),
        (dockerfile.MODEL, model),
        ("java.io.tmpdir=/tmp", f"java.io.tmpdir={folder / 't'}"),
    ):
        assert str(there) in text
        text = text.replace(str(there), str(here))
    (folder / "entrypoint").write_text(text)
    return folder / "entrypoint"


@contextmanager
def container(context: Path, home: Path, model: Path, user: str) -> Iterator["subprocess.Popen[str]"]:
    """The rendered entrypoint in namespaces of its own, as a container runtime would start it."""
    for tool in ("unshare", "setpriv", "nsenter", "ip", "curl"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    namespaces = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0 or subprocess.run([*namespaces, "true"], capture_output=True, check=False).returncode:
        pytest.skip("namespaces need root, and a kernel that lets it")
    if Path(sys.prefix).is_relative_to("/tmp"):
        pytest.skip("the environment lies in /tmp, of which a container has its own")
    python = Path(sys.base_prefix)
    hidden = f"mount --bind {python} /opt/python; mount -t tmpfs -o mode=755 tmpfs /root; mkdir -p {python}; " \
             f"mount --bind /opt/python {python}" if Path("/root") in python.parents else ":"  # fmt: skip
    layout = f"""
set -euo pipefail
ip link set lo up
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/context /mnt/djl /mnt/model
mount --bind {context} /mnt/context
mount --bind {home} /mnt/djl
mount --bind {model} /mnt/model
mount -t tmpfs -o mode=755 tmpfs /opt
mkdir -p {dockerfile.OURS} {dockerfile.HOME} {dockerfile.MODEL} /opt/python
cp /mnt/context/entrypoint /mnt/context/source/serving/server/{local.CONFIGURATION.name} {dockerfile.OURS}
mount --bind /mnt/djl {dockerfile.HOME}
mount --bind -o ro /mnt/model {dockerfile.MODEL}
{hidden}
mount -t tmpfs -o mode=1777 tmpfs /tmp
cd {dockerfile.HOME}
exec setpriv --reuid {user} --regid {user} --clear-groups /bin/bash {dockerfile.OURS}/entrypoint serve
"""
    variables: Mapping[str, str] = {
        **environment_of((context / "Dockerfile").read_text()),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
        **({} if (model / properties.FILE).is_file() else {"SAGEMAKER_MULTI_MODEL": "true"}),
    }
    with subprocess.Popen(
        [*namespaces, "/bin/bash", "-c", layout], env=variables, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def answered(server: "subprocess.Popen[str]", ask: Callable[[], Any]) -> Any:
    """What is answered once the server does."""
    end = time.monotonic() + local.START_LIMIT_S
    while True:
        assert server.poll() is None, server.communicate()[0]
        assert time.monotonic() < end
        try:
            return ask()
        except (httpx.TransportError, subprocess.CalledProcessError, IndexError):
            time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
