"""DJL Serving: Maven builds it once from sources at a pinned commit, with neuron-sum's plugin, into the cache.

    python -m serving.djl [FOLDER]     build it now; FOLDER for an image, otherwise the cache

Maven Central has no server with `option.async_mode`, which the handler needs, so pom.xml builds one from the sources
of DJL Serving; its dependencies, including DJL's api, come from Maven Central (docs/serving.md).
"""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neuron_sum import console, files
from neuron_sum.console import quote
from neuron_sum.errors import ServerError

VERSION = "0.36.0"
REPOSITORY = "https://github.com/deepjavalibrary/djl-serving"
COMMIT = "1e53e50dcbf307c765cf7cc0bb97d23d7c02fb76"
"""The commit of tag v0.36.0, 2026-03-11."""

HOME_VARIABLE = "NEURON_SUM_DJL"
"""The folder of a prebuilt server, such as the one in an image."""

SOURCE_VARIABLE = "NEURON_SUM_DJL_SOURCE"
"""A checkout of REPOSITORY at COMMIT, for machines that cannot reach the repository."""

PROJECT = Path(__file__).with_name("server")
MAIN_CLASS = "ai.djl.serving.ModelServer"
LIBRARIES = "lib"


def install(folder: Path | None = None) -> Path:
    """Build the server unless it exists.

    Args:
        folder: The target folder; None for NEURON_SUM_DJL or the cache. If several processes build the server at once,
            the first to finish puts it there, and the others use it.

    Returns:
        A folder with `lib/`, which contains every jar of the class path.

    Raises:
        ServerError: If a tool is missing or a source cannot be reached; the message names the failed command.
    """
    target = folder or Path(os.environ.get(HOME_VARIABLE) or _cached())
    if (target / LIBRARIES).is_dir():
        return target
    for tool, package in (("java", "openjdk-17-jdk"), ("mvn", "maven"), ("git", "git")):
        if shutil.which(tool) is None:
            raise ServerError(f"building DJL Serving {VERSION} requires {tool}", f"run `apt-get install {package}`")
    console.note(f"building DJL Serving {VERSION} (once, about a minute)")
    sources = _sources()
    with _scratch(target) as temporary:
        source, build, generated = temporary / "source", temporary / "build", temporary / "generated"
        shutil.copytree(sources, source, ignore=shutil.ignore_patterns(".git"))
        _prepare_python(source, generated)
        _run(
            [
                "mvn",
                "--batch-mode",
                "--quiet",
                "--file",
                str(PROJECT / "pom.xml"),
                "package",
                f"-Ddjl.source={source}",
                f"-Dgenerated={generated}",
                f"-Dbuild={build}",
            ],
            "Maven cannot build DJL Serving",
            "check that Maven Central can be reached and that `mvn --version` prints Java 17 or newer",
        )
        target.mkdir(exist_ok=True)
        _place(build / LIBRARIES, target / LIBRARIES)
    return target


def _cached() -> Path:
    """The server's folder in the cache, named after a hash of everything that determines the build."""
    digest = hashlib.sha256(COMMIT.encode())
    for path in [PROJECT / "pom.xml", *sorted(path for path in (PROJECT / "src").rglob("*") if path.is_file())]:
        digest.update(path.read_bytes())
    return files.cache_folder() / f"djl-serving-{VERSION}-{digest.hexdigest()[:12]}"


def _sources() -> Path:
    """The sources at the pinned commit only: the checkout in NEURON_SUM_DJL_SOURCE, otherwise a clone in the cache."""
    checkout = os.environ.get(SOURCE_VARIABLE)
    folder = Path(checkout) if checkout else files.cache_folder() / f"djl-serving-source-{VERSION}"
    if not folder.is_dir():
        with _scratch(folder) as temporary:
            clone = temporary / "clone"
            _run(
                [
                    "git",
                    "clone",
                    "--quiet",
                    "--depth",
                    "1",
                    "--branch",
                    f"v{VERSION}",
                    "--config",
                    "advice.detachedHead=false",
                    REPOSITORY,
                    str(clone),
                ],
                f"cannot fetch DJL Serving's sources from {REPOSITORY}",
                f"run `git clone --branch v{VERSION} {REPOSITORY}` on a machine with access, copy the folder here and "
                f"set {SOURCE_VARIABLE}=FOLDER",
            )
            _place(clone, folder)
    commit = _run(["git", "-C", str(folder), "rev-parse", "HEAD"], f"{folder} is not a git checkout", None).strip()
    if commit != COMMIT:
        raise ServerError(
            f"{folder} is at commit {commit}; v{VERSION} is {COMMIT}",
            f"run `git -C {quote(folder)} checkout v{VERSION}`",
        )
    return folder


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A temporary folder next to `target` to build it in."""
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.tmp-"
    files.sweep(target.parent, prefix)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as folder:
        yield Path(folder)


def _place(source: Path, target: Path) -> None:
    """Rename a folder to `target`, unless another process has created `target` meanwhile.

    An existing folder stays because it can be in use: Java opens each jar when it first needs it.
    """
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _prepare_python(source: Path, generated: Path) -> None:
    """Add what DJL's Gradle build adds to the worker's files: their version, and the list of files to unpack."""
    setup = source / "engines" / "python" / "setup"
    with (setup / "djl_python" / "__init__.py").open("a", encoding="utf-8") as module:
        module.write(f'\n__version__ = "{VERSION}"\n')
    names = sorted(
        path.relative_to(setup).as_posix()
        for path in (setup / "djl_python").rglob("*")
        if path.is_file() and "tests" not in path.parts
    )
    target = generated / "native" / "lib" / "python.properties"
    target.parent.mkdir(parents=True)
    target.write_text(f"version={VERSION}\nlibraries={','.join(['djl_python_engine.py', *names])}\n", encoding="utf-8")


def _run(command: list[str], failure: str, hint: str | None) -> str:
    try:
        finished = subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
        )
    except subprocess.CalledProcessError as error:
        lines = (error.stderr.strip() or error.stdout.strip()).splitlines()
        raise ServerError(f"{failure}: {' '.join(lines[-3:])[:400]}", hint) from error
    return finished.stdout


if __name__ == "__main__":
    try:
        console.emit({}, str(install(Path(sys.argv[1]) if len(sys.argv) > 1 else None)))
    except ServerError as error:
        console.fail(error.message, error.hint, error.exit_code)
        sys.exit(error.exit_code)
