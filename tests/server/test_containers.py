"""The image's sources and its running entrypoint. test_neuronx_container.py tests the frozen AWS container."""

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
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from micro_models import ROOT

from neuron_sum.artifact import Artifact
from neuron_sum.platform.matrix import PLATFORMS
from neuron_sum.platform.project import PACKAGES
from neuron_sum.recipes.schema import ServeConfig
from serving import djl, dockerfile, local, package, properties

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
TARGETS: tuple[dockerfile.Target, ...] = ("cpu", "inf2")
VERSION = re.compile(r"\d+\.\d+(?:\.\d+)*")
ADDRESSES = {"0.0.0.0", "127.0.0.1"}
NOBODY = "65534"


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {target: tmp_path_factory.mktemp("images") / target for target in TARGETS}
    for target, folder in folders.items():
        dockerfile.write_context(target, folder)  # type: ignore[arg-type]
    return folders


@pytest.mark.parametrize("target", TARGETS)
def test_every_version_is_that_of_the_platform_table(contexts: dict[str, Path], target: str) -> None:
    template = (Path(dockerfile.__file__).parent / dockerfile.TEMPLATE).read_text()
    assert set(VERSION.findall(template)) <= ADDRESSES
    platform = PLATFORMS[0]
    known = repr((platform, djl.VERSION, dockerfile.__version__))
    made = (contexts[target] / "Dockerfile").read_text()
    assert {version for version in VERSION.findall(made) if version not in known} <= ADDRESSES
    installed = made.partition("--no-index")[2].partition("COPY")[0]
    for name, version in (platform.pins | (platform.vendor_pins if target == "inf2" else {})).items():
        assert f"{name}=={version}" in installed.split()
    assert ("--requirement requirements/neuron.txt" in made) == (target == "inf2"), "what runs a Llama's artifact"
    assert f"FROM {platform.serving_images[target].name}\n" in made
    assert max(len(line) for line in made.splitlines() if line.startswith("#")) <= 120


@pytest.mark.parametrize("target", TARGETS)
def test_the_folder_contains_everything_that_a_build_needs(contexts: dict[str, Path], target: str) -> None:
    context = contexts[target]
    copied = re.findall(r"^COPY (?:--chmod=644 )?(?!--)(.+) \S+$", (context / "Dockerfile").read_text(), re.MULTILINE)
    for source in " ".join(copied).split():
        assert (context / source).exists(), source
    assert not [path for path in context.rglob("*") if path.name == "__pycache__" or path.name.startswith(".")]
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in tracked:
        if (ROOT / name).exists():
            assert (context / "source" / name).read_bytes() == (ROOT / name).read_bytes()
    commands = (context / "Dockerfile").read_text().replace("\\\n", " ").replace(" && ", "\nRUN ").splitlines()
    downloads = [
        line for line in commands if re.search(r"pip (install|download|wheel)", line) and "--no-index" not in line
    ]
    for line in downloads:
        assert "--no-deps" in line and ("--require-hashes" in line or line.endswith(" ./source")), line
        for name in re.findall(r"--requirement (\S+)", line):
            assert (context / name).is_file()


def test_the_builder_uses_only_what_it_installs(contexts: dict[str, Path]) -> None:
    source = contexts["cpu"] / "source"
    assert "rich==" in (source.parent / "requirements" / "builder.txt").read_text()
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
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout.strip() == f"['rich'] {source / 'serving' / '__init__.py'}"


@pytest.mark.parametrize("target", TARGETS)
def test_labels_user_and_entrypoint_for_sagemaker(contexts: dict[str, Path], target: str) -> None:
    made = (contexts[target] / "Dockerfile").read_text()
    labels = re.findall(r'^LABEL com\.amazonaws\.sagemaker\.capabilities\.(\S+)="true"$', made, re.MULTILINE)
    assert labels == (["accept-bind-to-port", "multi-models"] if target == "cpu" else ["accept-bind-to-port"])
    assert re.findall(r"^USER (\S+)$", made, re.MULTILINE) == ([dockerfile.USER] if target == "cpu" else [])
    assert made.endswith('ENTRYPOINT ["/bin/bash", "/opt/neuron-sum/entrypoint"]\nCMD ["serve"]\n')
    assert environment_of(made)[djl.HOME_VARIABLE] == str(dockerfile.HOME)


def test_java_has_the_same_options_as_on_this_machine() -> None:
    command = dockerfile.render_entrypoint("cpu").partition("exec java")[2].replace("\\\n", " ")
    here = [option for option in local.java_options(dockerfile.TEMPORARY) if str(local.CONFIGURATION) not in option]
    given = shlex.split(command)
    assert [option for option in given if option in here] == here
    assert f"-Dlog4j.configurationFile={dockerfile.PROGRAM / local.CONFIGURATION.name}" in given
    assert given[-4:] == ["-cp", f"{dockerfile.HOME / djl.LIBRARIES}/*", djl.MAIN_CLASS, "${model[@]}"]


def test_only_a_generated_context_is_replaced(neuron_sum: CommandLine, tmp_path: Path) -> None:
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


def test_other_arguments_are_executed_and_a_missing_model_is_reported(tmp_path: Path) -> None:
    script = placed(tmp_path, tmp_path / "none", tmp_path / "model")
    echo = subprocess.run(["bash", script, "echo", "serve me"], capture_output=True, text=True, check=False)
    assert (echo.returncode, echo.stdout) == (0, "serve me\n")
    lone = subprocess.run(["bash", script, "serve"], capture_output=True, text=True, check=False)
    assert lone.returncode == 1
    assert "holds no serving.properties" in lone.stderr


def test_the_entrypoint_starts_a_server_that_ends_on_sigterm(
    djl_serving: Path, contexts: dict[str, Path], tmp_path: Path
) -> None:
    """At paths of this machine: without a model, as a multi-model endpoint starts, on the given port."""
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
def test_the_entrypoint_serves_as_process_1_in_the_image_layout(
    djl_serving: Path, contexts: dict[str, Path], request: pytest.FixtureRequest, tmp_path: Path, target: str
) -> None:
    """The unmodified entrypoint: separate /opt, /tmp, process numbers and network, the Dockerfile's variables.

    For cpu an ordinary user serves a model. For inf2 root starts without one, because none is compiled for it here.
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
                capture_output=True,
                text=True,
                check=True,
            ).stdout

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


def environment_of(made: str) -> dict[str, str]:
    """The variables that a Dockerfile sets with ENV."""
    [block] = re.findall(r"^ENV ((?:.*\\\n)*.*)$", made, re.MULTILINE)
    return dict(item.split("=", 1) for item in shlex.split(block.replace("\\\n", " ")))


def placed(folder: Path, home: Path, model: Path) -> Path:
    """The entrypoint with paths of this machine."""
    (folder / "t").mkdir()
    text = dockerfile.render_entrypoint("cpu")
    for there, here in (
        (dockerfile.PROGRAM / local.CONFIGURATION.name, local.CONFIGURATION),
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
    """The rendered entrypoint in separate namespaces, as a container runtime would start it."""
    for tool in ("unshare", "setpriv", "nsenter", "ip", "curl"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    namespaces = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0 or subprocess.run([*namespaces, "true"], capture_output=True, check=False).returncode:
        pytest.skip("namespaces need root, and a kernel that lets it")
    for own in ("/tmp", "/root"):
        if Path(sys.prefix).is_relative_to(own):
            pytest.skip(f"the environment lies in {own}, and a container has its own {own}")
    python = Path(sys.base_prefix)
    hidden = (
        f"mount --bind {python} /opt/python; mount -t tmpfs -o mode=755 tmpfs /root; mkdir -p {python}; "
        f"mount --bind /opt/python {python}"
        if Path("/root") in python.parents
        else ":"
    )
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
mkdir -p {dockerfile.PROGRAM} {dockerfile.HOME} {dockerfile.MODEL} /opt/python
cp /mnt/context/entrypoint /mnt/context/source/serving/server/{local.CONFIGURATION.name} {dockerfile.PROGRAM}
mount --bind /mnt/djl {dockerfile.HOME}
mount --bind -o ro /mnt/model {dockerfile.MODEL}
{hidden}
mount -t tmpfs -o mode=1777 tmpfs /tmp
cd {dockerfile.HOME}
exec setpriv --reuid {user} --regid {user} --clear-groups /bin/bash {dockerfile.PROGRAM}/entrypoint serve
"""
    variables: Mapping[str, str] = {
        **environment_of((context / "Dockerfile").read_text()),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
        **({} if (model / properties.FILE).is_file() else {"SAGEMAKER_MULTI_MODEL": "true"}),
    }
    with subprocess.Popen(
        [*namespaces, "/bin/bash", "-c", layout],
        env=variables,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def answered(server: "subprocess.Popen[str]", ask: Callable[[], Any]) -> Any:
    """The answer once the server is up."""
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
