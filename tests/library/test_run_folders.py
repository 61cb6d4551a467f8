"""Run folders: locks, replacement, recognition, damaged files, and full disks."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from in_process import neuron_sum
from safetensors.torch import save_file

from compile.exporters.common import check_output
from neuron_sum import files
from neuron_sum.artifact import open_artifact
from neuron_sum.errors import ArtifactError, ResourceError, RunError
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.runs.contents import NEW, OLD, recover
from neuron_sum.runs.folder import RunFolder, describe_damage, open_run, start_run
from neuron_sum.training import train as training

HOLDER = """
import fcntl, os, sys, time
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
os.write(descriptor, f"{os.getpid()}\\n".encode())
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path, micro_lora_run: Path) -> Path:
    return Path(shutil.copytree(micro_lora_run, tmp_path / "run"))


@pytest.fixture
def holder(run: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-S", "-c", HOLDER, str(run / files.LOCK)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_with_the_first_one_until_it_dies(run: Path, holder: subprocess.Popen[str]) -> None:
    recipe = run / "recipe.yaml"
    for words in (
        ("train", str(recipe), "--output", str(run), "--overwrite"),
        ("train", str(recipe), "--output", str(run), "--overwrite", "--processes", "2"),
        ("train", str(recipe), "--output", str(run), "--resume"),
        ("evaluate", str(run)),
        ("compare", str(run), "lead-3"),
    ):
        made = neuron_sum(*words)
        assert made.exit_code == 8, made.output
        assert f"is in use by process {holder.pid}" in made.stderr
    assert open_run(run).is_complete, "reading needs no lock"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with files.lock(run), files.lock(run):
        assert int((run / files.LOCK).read_text()) == os.getpid()
    assert not (run / files.LOCK).exists()


def test_a_lock_never_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("text")
    (tmp_path / files.LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(ResourceError, match="cannot be locked"), files.lock(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "text"


def test_what_cannot_be_written_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with files.lock(tmp_path):
            pass
    with files.lock_output(tmp_path / "new" / "artifact"):
        assert (tmp_path / "new" / ".artifact.lock").is_file()
    assert not (tmp_path / "new").exists()


# Replacement


class Killed(BaseException):
    """Stands for the end of the process."""


def write(new: RunFolder) -> None:
    files.write_text(new.recipe_path, new.recipe.to_yaml())
    new.record_processes(1, 1)
    new.base.mkdir()
    new.write_record({"new": "1"})


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not path.is_symlink()
    }


@pytest.fixture
def small(tmp_path: Path) -> RunFolder:
    """A run without models, with a user's file, and a link to a folder elsewhere."""
    run = RunFolder(tmp_path / "run", load_recipe("tiny"))
    run.path.mkdir()
    files.write_text(run.recipe_path, "old")
    run.write_record({"old": "1"})
    run.weights.mkdir()
    (run.weights / "model.safetensors").write_text("old")
    (run.path / "notes.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "graph.pt2").write_text("precious")
    (run.path / "artifacts").symlink_to(tmp_path / "elsewhere")
    return run


def assert_replaced(run: RunFolder) -> None:
    assert run.read_record().fingerprint == {"new": "1"}
    assert sorted(path.name for path in run.path.iterdir()) == [
        "base",
        "checkpoints",
        "notes.txt",
        "recipe.yaml",
        "run.json",
    ]


def test_replacing_a_run_keeps_other_files_and_the_targets_of_links(small: RunFolder, tmp_path: Path) -> None:
    small.create(write)
    assert_replaced(small)
    assert (small.path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "elsewhere" / "graph.pt2").read_text() == "precious"


def test_a_failure_while_the_new_run_is_written_changes_nothing(small: RunFolder) -> None:
    before = contents(small.path)

    def fail(new: RunFolder) -> None:
        write(new)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new.path))

    with pytest.raises(ResourceError, match="No space left"):
        small.create(fail)
    assert contents(small.path) == before


@pytest.mark.parametrize("step", range(1, 8))
@pytest.mark.parametrize("killed", [False, True], ids=["failed", "killed"])
def test_a_replacement_that_stops_anywhere_is_undone_or_completed(
    small: RunFolder, step: int, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls, real = contents(small.path), 0, Path.rename

    def rename(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == step or (killed and calls > step):
            raise Killed if killed else OSError(errno.EACCES, "Permission denied", str(self))
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        with pytest.raises(Killed if killed else ResourceError):
            small.create(write)
    if killed and step > 1:
        assert (small.path / OLD).is_dir() and (small.path / NEW).is_dir()
        recover(small.path)
        assert_replaced(small)
    else:  # also if nothing was moved yet
        assert contents(small.path) == before
    recover(small.path)
    assert (small.path / "notes.txt").read_text() == "mine"


def test_a_kill_while_the_new_run_is_written_leaves_the_old_one(small: RunFolder) -> None:
    before = contents(small.path)
    (small.path / NEW).mkdir()
    (small.path / NEW / "recipe.yaml").write_text("half")
    start_run(small.path, small.recipe, processes=1, resume=False, overwrite=True)
    assert contents(small.path) == before


def test_overwriting_a_link_is_refused(small: RunFolder, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(small.path)
    with pytest.raises(RunError, match="is a link, which --overwrite does not follow"):
        start_run(link, small.recipe, processes=1, resume=False, overwrite=True)


@pytest.mark.parametrize(
    "mark", [None, "{}", "[]", "", '{"kind": "neuron-sum'], ids=["none", "empty", "list", "blank", "cut"]
)
def test_the_folder_of_somebody_else_is_never_replaced(tmp_path: Path, mark: str | None) -> None:
    (tmp_path / "theirs" / "evaluation").mkdir(parents=True)
    (tmp_path / "theirs" / "recipe.yaml").write_text("bread")
    if mark is not None:
        (tmp_path / "theirs" / "run.json").write_text(mark)
    for options in ({"overwrite": True, "resume": False}, {"overwrite": False, "resume": True}):
        with pytest.raises(RunError, match="not empty and not a run"):
            start_run(tmp_path / "theirs", load_recipe("tiny"), processes=1, **options)


@pytest.mark.parametrize("manifest", ['{"name": "a web app", "version": 3}', "[]", "{", ""])
def test_the_manifest_of_another_program_is_not_an_artifact(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "manifest.json").write_text(manifest)
    with pytest.raises(RunError, match="not empty and not an artifact"):
        check_output(tmp_path / "site", overwrite=True)


# Damaged files

DAMAGE = {
    "empty": b"",
    "cut": b'{"a": ',
    "not UTF-8": b'{"a": "\xff"}\n',
    "deep": b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}\n",
    "list": b"[]\n",
    "text": b'"x"\n',
    "surrogate": b'{"a": "\\ud800"}\n',
    "digits": b'{"a": ' + b"9" * 5000 + b"}\n",
    "folder": None,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["run.json", "all_results.json", "recipe.yaml", "checkpoints/processes.json"])
def test_a_damaged_file_of_a_run_is_named(tmp_path: Path, micro_lora_run: Path, name: str, damage: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for kept in ("run.json", "all_results.json", "recipe.yaml"):
        shutil.copyfile(micro_lora_run / kept, run / kept)
    (run / "checkpoints").mkdir()
    (run / name).unlink(missing_ok=True)
    content = DAMAGE[damage]
    if content is None:
        (run / name).mkdir()
    else:
        (run / name).write_bytes(content)

    def read() -> None:
        opened = open_run(run)
        opened.read_results()
        assert opened.processes is not None

    with pytest.raises(RunError) as raised:
        read()
    assert Path(name).name in raised.value.message or "is unfinished" in raised.value.message
    assert "\n  File" not in raised.value.message and raised.value.hint


@pytest.mark.parametrize("damage", [damage for damage in DAMAGE if damage != "empty"])
def test_a_damaged_log_mark_or_manifest_is_named(tmp_path: Path, damage: str) -> None:
    content = DAMAGE[damage]
    for name in ("log.jsonl", "complete", "manifest.json"):
        if content is None:
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_bytes(content + (b"" if content.endswith(b"\n") else b"\n"))
    with pytest.raises(RunError, match=r"log\.jsonl"):
        files.read_jsonl(tmp_path / "log.jsonl")
    assert describe_damage(tmp_path) is not None
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        open_artifact(tmp_path)


def test_a_value_of_another_type_in_the_results_is_named(run: Path) -> None:
    results = files.read_json(run / "all_results.json")
    for key, value in (("weights_bytes", "many"), ("method", None), ("eval_loss", [])):
        files.write_json(run / "all_results.json", {**results, key: value})
        with pytest.raises(RunError, match=rf"all_results\.json cannot be read: {key}"):
            open_run(run).read_results()


@pytest.mark.parametrize("line", ['{"step": "one"}', '{"loss": 1.0}', '{"step": 1, "loss": [2]}', '{"step": null}'])
def test_a_value_of_another_type_in_the_log_is_named(tmp_path: Path, line: str) -> None:
    run = RunFolder(tmp_path, load_recipe("tiny"))
    run.log.write_text('{"step": 1, "loss": 2.5, "grad_norm": NaN}\n' + line + "\n")
    with pytest.raises(RunError, match=r"log\.jsonl:2 cannot be read: (step|loss) is"):
        run.read_log()


# Full disks


@pytest.fixture
def small_files(tmp_path: Path) -> Iterator[None]:
    """No file of this process can grow beyond a megabyte, which the libraries report as they report a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "save",
    [
        lambda path: save_file({"a": torch.zeros(1_000_000)}, path),
        lambda path: torch.save({"a": torch.zeros(1_000_000)}, path),
        lambda path: path.write_text("x" * 4_000_000),
    ],
    ids=["safetensors", "torch", "Python"],
)
def test_a_failed_write_is_recognized_in_every_library(
    small_files: None, save: Callable[[Path], object], tmp_path: Path
) -> None:
    with pytest.raises(ResourceError, match="cannot be written") as raised, files.writing(tmp_path):
        save(tmp_path / "file")
    assert raised.value.exit_code == 6


@pytest.mark.parametrize("text", ["I/O error: No space left on device (os error 28)", "Disk quota exceeded"])
def test_the_texts_of_a_full_disk_are_recognized(tmp_path: Path, text: str) -> None:
    with pytest.raises(ResourceError, match="cannot be written"), files.writing(tmp_path):
        raise RuntimeError(text)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG])
def test_a_file_that_cannot_be_written_keeps_its_content(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_json(tmp_path / "a.json", {"old": 1})

    def fail(self: Path, *_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number), str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", fail)
        with pytest.raises(ResourceError, match=r"a\.json cannot be written"):
            files.write_json(tmp_path / "a.json", {"new": 1})
    assert files.read_json(tmp_path / "a.json") == {"old": 1}
    with pytest.raises(ResourceError, match="cannot be written"):
        files.write_text(tmp_path / "gone" / "a.json", "x")


def test_other_exceptions_stay_as_they_are(tmp_path: Path) -> None:
    for error in (ValueError("x"), FileNotFoundError(errno.ENOENT, "no", "/elsewhere"), RunError("y")):
        with pytest.raises(type(error)) as raised, files.writing(tmp_path / "run"):
            raise error
        assert raised.value is error


def test_a_full_disk_during_training_keeps_the_run_and_names_the_next_command(
    tmp_path: Path, micro: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(training.TorchTrainer):
        def train(self, *_: object) -> Path:
            (self.run.checkpoints / "checkpoint-4").mkdir()
            (self.run.checkpoints / "checkpoint-4" / "complete").write_text("{}")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(training.BACKENDS, "torch", Full)
    recipe, run = load_recipe(str(micro)), tmp_path / "run"
    with pytest.raises(ResourceError, match="No space left") as raised:
        training.train(recipe, run)
    assert "--resume" in str(raised.value.hint)
    assert start_run(run, recipe, processes=1, resume=True, overwrite=False).last_checkpoint() is not None
    assert not (run / files.LOCK).exists()


def test_an_error_of_a_full_disk_anywhere_exits_with_6(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights.partial")

    monkeypatch.setattr("neuron_sum.runs.merge.merge", fail)
    made = neuron_sum("merge", str(run))
    assert made.exit_code == 6
    assert "the disk is full: weights.partial" in made.stderr
