"""The Python API of docs/python.md."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.spawn import get_preparation_data
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from in_process import neuron_sum as command
from micro_models import LORA_SHAPE, ROOT, SHAPE

import neuron_sum
from compile import compile_run
from neuron_sum import Summarizer, compare, console, evaluate, load_recipe, train
from neuron_sum.calls import api_call
from neuron_sum.errors import DataError, NeuronSumError, RecipeError, ResourceError, RunError
from neuron_sum.files import sha256
from neuron_sum.platform import threads
from neuron_sum.runs.folder import open_run

HEAVY = ("torch", "transformers", "peft", "datasets", "numpy", "matplotlib")


def test_importing_the_api_imports_nothing_heavy() -> None:
    code = (
        "import sys, neuron_sum, compile\n"
        "print('pydantic' in sys.modules)\n"
        "from compile import compile_run\n"
        f"for name in neuron_sum.__all__: getattr(neuron_sum, name)\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert made.stdout.split("\n")[:2] == ["False", "[]"]


def test_names_that_do_not_exist_are_rejected() -> None:
    assert set(neuron_sum.__all__) <= set(dir(neuron_sum))
    with pytest.raises(AttributeError, match="no attribute 'tran'"):
        neuron_sum.tran  # type: ignore[attr-defined]  # noqa: B018


def example() -> str:
    """The code of docs/python.md."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)[0]


def test_the_example_runs(
    micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["method=lora", "train.max_steps=2", *SHAPE, *LORA_SHAPE]  # the graphs of other tests
    code, count = re.subn(r'load_recipe\("tiny", \[.*?\]\)', f"load_recipe({str(micro)!r}, {small})", example())
    assert count == 1
    names: dict[str, Any] = {}
    with pytest.warns(UserWarning, match="the summary was truncated at generate.max_new_tokens = 12"):
        exec(compile(code, "docs/python.md", "exec"), names)
    printed = capsys.readouterr()
    assert "points above untuned" in printed.out
    assert "optimizer steps" in printed.err, "training has progress=True"
    assert "summarizing" not in printed.err, "nothing else has"
    report, run = names["report"], names["run"]
    assert {"low", "high", "p_value"} < report.as_dict()["systems"][1]["improvement"]["ROUGE-1"].keys()
    score = report.scores["tuned"]["ROUGE-1"]
    assert score.low <= score.value <= score.high
    assert score == names["scores"]["ROUGE-1"], "evaluate and compare agree"
    assert (tmp_path / "comparison" / "report.html").is_file()
    dialogue = names["dialogue"]
    assert list(report.summaries(0)) == ["human", "untuned", "tuned"]
    assert Summarizer(run, progress=True).summarize([dialogue]) == [report.summaries(0)["tuned"]]


def test_nothing_is_printed_without_progress(
    micro: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(str(micro), tmp_path / "run", overrides=["train.max_steps=1"])
    report = evaluate(run)
    assert capfd.readouterr() == ("", "")
    assert report.path == tmp_path / "run" / "evaluation" / "test" / "report.html"
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a notebook
    assert str(report).startswith("12 of 48 dialogues: the bundled sample, test split\nsystem  ")
    assert str(report).replace("\n", " ").isprintable()


def test_a_loaded_recipe_is_changed(micro: Path) -> None:
    recipe = load_recipe(micro)
    assert load_recipe(recipe) == recipe
    changed = load_recipe(recipe, "method=lora")
    assert changed == load_recipe(micro, ["method=lora"])
    with pytest.raises(RecipeError, match=r"micro: 1 error\n  train\.seed = -1"):
        load_recipe(recipe, ["train.seed=-1"])


def test_the_command_prints_the_result_of_the_function(micro_run: Path, tmp_path: Path) -> None:
    shutil.copytree(micro_run, tmp_path / "run")
    report = evaluate(tmp_path / "run")
    assert command("evaluate", str(tmp_path / "run")).output == f"{report}\nreport: {report.path}\n"


def test_truncation_is_a_python_warning(micro_run: Path) -> None:
    summarizer = Summarizer(open_run(micro_run), overrides=["generate.max_new_tokens=2"])
    with pytest.warns(UserWarning, match="2 of 2 summaries were truncated at generate.max_new_tokens = 2"):
        found = summarizer.predict(["A: hello", "B: I like this place"])
    assert [each.hit_limit for each in found] == [True, True]
    assert summarizer.summarize([]) == []


def test_the_names_of_a_mapping_are_not_split(tmp_path: Path) -> None:
    report = compare({"lr=1": "lead-3", "people": "human"}, recipe="tiny", output=tmp_path)
    assert set(report.scores) == {"lr=1", "people"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda run: compare("untuned"), RunError, "not a list of systems: 'untuned'"),
        (lambda run: compare([]), RunError, "not a list of systems"),
        (lambda run: evaluate(3), RunError, "not a system: 3"),
        (lambda run: evaluate("nowhere"), RunError, "no system 'nowhere'"),
        (lambda run: train(run / "recipe.yaml", run), RunError, "contains a finished run"),
        (lambda run: train("tinny"), RecipeError, "recipe 'tinny' not found"),
        (lambda run: Summarizer(run / "evaluation"), RunError, "is neither a run, an artifact"),
        (lambda run: Summarizer(run / "checkpoint"), RunError, "has no recipe"),
        (lambda run: Summarizer(run).summarize("A: hello"), DataError, "not a list of dialogues: 'A: hello'"),
        (lambda run: Summarizer(run).summarize(["A: hello", " "]), DataError, "dialogue 1 is empty"),
        (lambda run: Summarizer(run).summarize([None]), DataError, "dialogue 0 is not a text: None"),
        (lambda run: Summarizer(run).summarize(["\ud83d"]), DataError, "lone surrogate U\\+D83D"),
        (lambda run: evaluate(run, output="/proc/nowhere"), ResourceError, "/proc/nowhere"),
    ],
)
def test_failures_are_errors_of_neuron_sum(
    micro_run: Path, call: Callable[[Any], object], error: type[NeuronSumError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        call(micro_run)
    assert caught.value.hint is not None
    assert caught.value.__notes__ == [f"hint: {caught.value.hint}"]


@pytest.mark.parametrize("call", [Summarizer, compile_run, lambda _: compare(["lead-3"])])
def test_a_hint_names_the_option_and_the_argument(micro_run: Path, call: Callable[[Path], object]) -> None:
    with pytest.raises(RunError) as caught:
        call(micro_run / "checkpoint")
    assert str(caught.value.hint).startswith(
        "name a recipe with --recipe NAME (in Python recipe=NAME), which supplies "
    )


def test_errors_of_this_machine_are_converted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from neuron_sum.training import train as training

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "weights")

    monkeypatch.setattr(training, "train", full)
    with pytest.raises(ResourceError, match="the disk is full: weights"):
        train("tiny", tmp_path / "run")


def test_threads_are_chosen_once_before_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[bool] = []

    def choose(environment: object, before: object, *, serves: bool) -> None:
        chosen.append(serves)
        monkeypatch.setenv(threads.CHOSEN, "")

    monkeypatch.setattr(threads, "choose", choose)
    monkeypatch.delenv(threads.CHOSEN, raising=False)
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    with api_call(progress=False):
        assert not chosen
    monkeypatch.delitem(sys.modules, "torch")
    for _ in range(2):
        with api_call(progress=False):
            assert chosen == [True]


def test_a_call_hides_the_messages_of_its_own_thread_only(capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(1) as pool, api_call(progress=False):
        console.note("in the call")
        pool.submit(console.note, "in another thread").result()
    assert capsys.readouterr().err == "in another thread\n"


def test_the_variables_that_stay_set_are_documented() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert all(f"{name}={value}" in page for name, value in console.LIBRARIES.items())


def test_compile_workers_do_not_run_the_callers_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As multiprocessing does, if the script has no `if __name__ == "__main__"`."""
    from compile.workers import _Worker

    script = ModuleType("__main__")
    script.__file__ = str(tmp_path / "script.py")
    monkeypatch.setitem(sys.modules, "__main__", script)
    assert get_preparation_data("worker")["init_main_from_path"] == script.__file__
    sent: dict[str, object] = {}
    worker = _Worker(tmp_path)
    monkeypatch.setattr(worker._process, "start", lambda: sent.update(get_preparation_data("worker")))
    worker.start()
    assert sent["sys_argv"] and not {"init_main_from_path", "init_main_from_name"} & set(sent)
    assert sys.modules["__main__"] is script


def test_a_training_does_not_change_the_precision_of_the_next_one(tmp_path: Path) -> None:
    changes = ["train.max_steps=2", "data.max_examples=8", "data.max_validation_examples=1"]
    hashes = []
    for number, bf16 in enumerate(("false", "true", "false")):
        run = train("tiny", tmp_path / str(number), overrides=[*changes, f"train.bf16={bf16}"])
        hashes.append(sha256(run.weights / "model.safetensors"))
    assert hashes[0] == hashes[2] != hashes[1]
