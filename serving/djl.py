"""DJL Serving: Maven builds it once from sources at a pinned commit, with neuron-sum's plugin, into the cache.

    python -m serving.djl [FOLDER]     build it now; FOLDER for an image, otherwise the cache

Maven Central has no server with `option.async_mode`, which the handler needs, so pom.xml builds one from the sources
of DJL Serving; its dependencies, including DJL's api, come from Maven Central (docs/serving.md). Sources and jars are
used only if their SHA-256 is the one recorded here and in server/dependencies.sha256.
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
from neuron_sum.subprocesses import ending_with_parent

VERSION = "0.36.0"
REPOSITORY = "https://github.com/deepjavalibrary/djl-serving"
COMMIT = "1e53e50dcbf307c765cf7cc0bb97d23d7c02fb76"
"""The commit of tag v0.36.0, 2026-03-11."""

HOME_VARIABLE = "NEURON_SUM_DJL"
"""The folder of a prebuilt server, such as the one in an image."""

SOURCE_PARTS = (
    "engines/python/setup/djl_python",
    "engines/python/setup/djl_python_engine.py",
    "engines/python/src/main",
    "prometheus/src/main",
    "serving/src/main",
    "wlm/src/main",
)
"""What the build reads of the sources."""

SOURCE_SHA256 = "94d94304e91a4f63dcd64832cbf00cbc8b11a0e0ca081cd78ca1621f7e7c3c37"
"""The hash of the names and contents of all files in SOURCE_PARTS at COMMIT."""

SOURCE_VARIABLE = "NEURON_SUM_DJL_SOURCE"
"""A folder with the files of REPOSITORY at COMMIT, for machines that cannot reach the repository."""

PROJECT = Path(__file__).with_name("server")
MAIN_CLASS = "ai.djl.serving.ModelServer"
LIBRARIES = "lib"
COPY_JARS = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
OWN_JAR = f"djl-serving-{VERSION}.jar"
CHECKSUMS = PROJECT / "dependencies.sha256"
"""The SHA-256 of every jar except OWN_JAR, in the format of sha256sum."""


def install(folder: Path | None = None) -> Path:
    """Build the server unless it exists.

    Args:
        folder: The target folder; None for NEURON_SUM_DJL or the cache. If several processes build the server at once,
            the first to finish puts it there, and the others use it.

    Returns:
        A folder with `lib/`, which contains every jar of the class path.

    Raises:
        ServerError: If a tool is missing, a source cannot be reached (the message names the failed command), or a
            source file or a jar differs from the recorded one.
    """
    target = folder or Path(os.environ.get(HOME_VARIABLE) or _cached())
    if (target / LIBRARIES).is_dir():
        return target
    tools = {"java": "openjdk-17-jdk", "mvn": "maven"}
    for tool, package in (tools if os.environ.get(SOURCE_VARIABLE) else {**tools, "git": "git"}).items():
        if shutil.which(tool) is None:
            raise ServerError(f"building DJL Serving {VERSION} requires {tool}", f"run `apt-get install {package}`")
    console.note(f"building DJL Serving {VERSION} (once, about a minute)")
    sources = _sources()
    with _scratch(target) as temporary:
        source, build, generated = temporary / "source", temporary / "build", temporary / "generated"
        _copy_verified(sources, source)
        _prepare_python(source, generated)
        options = [f"-Ddjl.source={source}", f"-Dgenerated={generated}", f"-Dbuild={build}"]
        # The compiler runs code of these jars (log4j's annotation processor), so they are compared before.
        _maven([COPY_JARS, "-DincludeScope=runtime", f"-DoutputDirectory={build / LIBRARIES}", *options])
        _verify_jars(build / LIBRARIES)
        _maven(["package", *options])
        _verify_jars(build / LIBRARIES)
        target.mkdir(exist_ok=True)
        _place(build / LIBRARIES, target / LIBRARIES)
    return target


def _cached() -> Path:
    """The server's folder in the cache, named after a hash of everything that determines the build."""
    digest = hashlib.sha256(COMMIT.encode())
    for path in [
        PROJECT / "pom.xml",
        CHECKSUMS,
        *sorted(path for path in (PROJECT / "src").rglob("*") if path.is_file()),
    ]:
        digest.update(path.read_bytes())
    return files.cache_folder() / f"djl-serving-{VERSION}-{digest.hexdigest()[:12]}"


def _sources() -> Path:
    """The folder of the sources: NEURON_SUM_DJL_SOURCE, otherwise a clone in the cache."""
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
    return folder


def _copy_verified(sources: Path, target: Path) -> None:
    """Copy what the build reads, and compare its content with that of the pinned commit."""
    digest = hashlib.sha256()
    for part in SOURCE_PARTS:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copy if (sources / part).is_file() else _copy_tree
        try:
            copy(sources / part, target / part)
        except OSError as error:
            raise ServerError(
                f"{sources} does not contain the sources of DJL Serving: {error}", _remedy(sources)
            ) from error
    names = {path.relative_to(target).as_posix(): path for path in target.rglob("*") if path.is_file()}
    for name, path in sorted(names.items()):
        digest.update(f"{name}\0{files.sha256(path)}\n".encode())
    if digest.hexdigest() != SOURCE_SHA256:
        raise ServerError(
            f"the files in {sources} differ from those of DJL Serving {VERSION}: SHA-256 {digest.hexdigest()} instead "
            f"of {SOURCE_SHA256}",
            _remedy(sources),
        )


def _copy_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))


def _remedy(sources: Path) -> str:
    return f"replace the folder by the output of `git clone --branch v{VERSION} {REPOSITORY} {quote(sources)}`"


def _verify_jars(folder: Path) -> None:
    """Compare the downloaded jars with the recorded ones."""
    lines = CHECKSUMS.read_text(encoding="utf-8").splitlines()
    expected = {name: sha256 for sha256, name in (line.split("  ") for line in lines)}
    found = {path.name: files.sha256(path) for path in folder.iterdir() if path.name != OWN_JAR}
    if differing := sorted(dict(expected.items() ^ found.items())):
        raise ServerError(
            f"Maven downloaded other jars than {CHECKSUMS.name} records: {', '.join(differing)}",
            "check the repository that Maven downloads from, and remove these jars from its local repository",
        )


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


def _maven(arguments: list[str]) -> None:
    _run(
        ["mvn", "--batch-mode", "--quiet", "--strict-checksums", "--file", str(PROJECT / "pom.xml"), *arguments],
        "Maven cannot build DJL Serving",
        "check that Maven Central can be reached and that `mvn --version` prints Java 17 or newer",
    )


def _run(command: list[str], failure: str, hint: str | None) -> str:
    try:
        finished = subprocess.run(
            ending_with_parent(command),
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
