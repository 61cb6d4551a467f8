"""tools/check_prose.py reports a planted violation of each rule and accepts its rewrite."""

import subprocess
import sys
from pathlib import Path

import pytest
from micro_models import ROOT

ARGUMENTS = '"""Deletes a run.\n\nArgs:\n    run: {}\n"""\n'
CASES = [
    (2, "a.py", ARGUMENTS.format("Whose."), ARGUMENTS.format("The run that owns the resource.")),
    (2, "a.py", ARGUMENTS.format("Told of each step."), ARGUMENTS.format("Whether the run has ended.")),
    (4, "a.md", "It waits, for it is slow.", "It waits for it, because it is slow."),
    (4, "a.py", "# skipped,\n# for a graph is missing\n", "# skipped, for example because\n# a graph is missing\n"),
    (
        4,
        "a.md",
        "It waits, for DJL lists them.",
        "It prints one line, for a compiler that refuses lists, for each list.",
    ),
    (5, "a.py", 'print(f"{1} is no recipe")\n', 'print(f"there is no recipe {1}, and 2 is no longer one")\n'),
    (5, "a.md", "Three instances are none.", "If there are none, the value is None."),
    (6, "a.md", "An endpoint of ours.", "An endpoint that is ours."),
    (6, "a.py", "# a thread of its own\n", "# in its own thread, for buckets of your own\n"),
    (6, "a.md", "SageMaker's own limit.", "The limit that SageMaker sets on its own."),
    (6, "a.md", "AWS's limit.", "An AWS limit."),
    (8, "a.py", 'print("Stopped after so long.")\n', 'print("As long as it runs, so that it ends.")\n'),
    (8, "a.md", "Takes so many rows.", "Takes this many rows. Not so many that it fails."),
]


def check(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "tools" / "check_prose.py"), *arguments]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("rule", "name", "violation", "clean"), CASES)
def test_each_rule_rejects_a_violation_and_accepts_its_rewrite(
    tmp_path: Path, rule: int, name: str, violation: str, clean: str
) -> None:
    (tmp_path / name).write_text(violation)
    found = check(name, folder=tmp_path)
    assert found.returncode == 1, found.stderr
    [line] = found.stdout.splitlines()
    assert line.startswith(f"{name}:") and f": rule {rule}: " in line and " -> " in line
    assert f"rule {rule}: 1\n" in check("--count", name, folder=tmp_path).stdout
    (tmp_path / name).write_text(clean)
    passed = check(name, folder=tmp_path)
    assert (passed.returncode, passed.stdout) == (0, ""), passed.stdout + passed.stderr


def test_code_and_regular_expressions_are_not_prose(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('so_many = "so"  # code\nPATTERN = r"there are so many errors, for it is no file"\n')
    assert check("a.py", folder=tmp_path).returncode == 0


def test_tracked_files_are_checked_by_default(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / "tracked.md").write_text("\nThis is no recipe.\n")
    (tmp_path / "other.md").write_text("This is no recipe.\n")
    subprocess.run(["git", "add", "tracked.md"], cwd=tmp_path, check=True)
    assert check(folder=tmp_path).stdout == 'tracked.md:2: rule 5: is no recipe -> "is not a"\n'
