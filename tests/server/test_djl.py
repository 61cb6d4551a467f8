"""DJL Serving is built once even if several processes start at once. Only Maven is replaced."""

import hashlib
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from neuron_sum.errors import ServerError
from serving import djl

MAVEN = """\
#!/bin/bash
# Makes the jar that its number names, and ends once the test lets that number go.
for argument; do
    case "$argument" in
        -Dbuild=*) build="${argument#*=}" ;;
        -Ddjl.source=*) test -f "${argument#*=}/engines/python/setup/djl_python/__init__.py" ;;
    esac
done
mkdir -p "$build/lib"
[[ "$*" == *:copy-dependencies* ]] && exit
number=0
until mkdir "$RUNS/$number" 2>/dev/null; do number=$((number + 1)); done
echo "$number" > "$build/lib/serving.jar"
for tick in {1..3000}; do [[ -e "$RUNS/$number/go" ]] && exit; sleep 0.01; done
exit 1
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the fake Maven's runs; the sources come from a local repository."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("mvn", MAVEN), ("java", "#!/bin/bash\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    origin = tmp_path / "origin"
    module = origin / "engines" / "python" / "setup" / "djl_python" / "__init__.py"
    module.parent.mkdir(parents=True)
    module.touch()
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "x"], ["tag", f"v{djl.VERSION}"]):
        subprocess.run(["git", *identity, *command], cwd=origin, check=True)
    monkeypatch.setattr(djl, "REPOSITORY", origin.as_uri())
    monkeypatch.setattr(djl, "SOURCE_PARTS", ("engines/python/setup/djl_python",))
    line = f"engines/python/setup/djl_python/__init__.py\0{hashlib.sha256(b'').hexdigest()}\n"
    monkeypatch.setattr(djl, "SOURCE_SHA256", hashlib.sha256(line.encode()).hexdigest())
    monkeypatch.setattr(djl, "OWN_JAR", "serving.jar")
    monkeypatch.setattr(djl, "CHECKSUMS", tmp_path / "dependencies.sha256")
    (tmp_path / "dependencies.sha256").touch()
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NEURON_SUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(djl.HOME_VARIABLE, raising=False)
    monkeypatch.delenv(djl.SOURCE_VARIABLE, raising=False)
    (tmp_path / "runs").mkdir()
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def wait_for(there: Callable[[], bool]) -> None:
    tick = threading.Event()
    for _ in range(3000):
        if there():
            return
        tick.wait(0.01)
    raise AssertionError("it did not come")


def test_the_first_finished_build_is_kept(runs: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        builds = [pool.submit(djl.install) for _ in range(2)]
        wait_for(lambda: len(list(runs.iterdir())) == 2)
        (runs / "1" / "go").touch()
        wait_for(lambda: any(build.done() for build in builds))
        [first] = [build.result() for build in builds if build.done()]
        jar = first / djl.LIBRARIES / "serving.jar"
        before = jar.stat().st_ino
        (runs / "0" / "go").touch()
        assert {build.result() for build in builds} == {first}
    assert (jar.read_text(), jar.stat().st_ino) == ("1\n", before)
    assert [path.name for path in first.iterdir()] == [djl.LIBRARIES]
    names = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert names == sorted([first.name, f"djl-serving-source-{djl.VERSION}"]), "something was left"
    assert djl.install() == first
    assert len(list(runs.iterdir())) == 2, "it was built again"


def test_sources_fetched_by_another_process_are_kept(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "made" / "a").mkdir(parents=True)
    (tmp_path / "there" / "b").mkdir(parents=True)
    djl._place(tmp_path / "made", tmp_path / "there")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["b"]
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        djl._place(tmp_path / "made", tmp_path / "file")


@pytest.mark.parametrize("change", ["changed", "added", "removed"])
def test_changed_sources_are_refused_at_the_right_commit(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    module = tmp_path / "origin" / "engines" / "python" / "setup" / "djl_python" / "__init__.py"
    if change == "removed":
        module.unlink()
        module.parent.rmdir()
    else:
        (module if change == "changed" else module.with_name("more.py")).write_text("import os\n")
    monkeypatch.setenv(djl.SOURCE_VARIABLE, str(tmp_path / "origin"))
    with pytest.raises(ServerError, match=r"differ from those|does not contain") as error:
        djl.install()
    assert f"git clone --branch v{djl.VERSION}" in str(error.value.hint)
    assert not list(runs.iterdir()), "Maven ran"


def test_a_jar_that_is_not_recorded_is_refused(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "dependencies.sha256").write_text(f"{'0' * 64}  netty-codec-http-4.1.132.Final.jar\n")
    with pytest.raises(ServerError, match=r"other jars than .*: netty-codec-http-4\.1\.132\.Final\.jar"):
        djl.install()
    assert not list(runs.iterdir()), "it was compiled"
    assert not [path for path in (tmp_path / "cache").glob(f"djl-serving-{djl.VERSION}*")]


def test_a_build_that_fails_leaves_nothing(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "tools" / "mvn").write_text("#!/bin/bash\necho no network >&2\nexit 1\n")
    (tmp_path / "image").mkdir()
    with pytest.raises(ServerError, match="no network"):
        djl.install(tmp_path / "image" / "djl")
    assert list((tmp_path / "image").iterdir()) == []
