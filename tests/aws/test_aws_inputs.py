"""The inputs of jobs: only the files that a recipe names, without links to others, and as they are on this machine."""

import json
from pathlib import Path
from typing import Any

import pytest
from aws_faults import hasten
from aws_inputs import BUCKET, failed, told
from aws_server import AwsServer
from in_process import neuron_sum

from neuron_sum import load_recipe
from neuron_sum.errors import DataError
from sagemaker_jobs.jobs import inputs
from sagemaker_jobs.launch import channels

ROW = json.dumps({"id": "1", "dialogue": "A: hi", "summary": "A says hi."}) + "\n"
TRAIN = ("aws", "train", "tiny", "--instance", "ml.c7i.4xlarge", "--wheelhouse", "wheels", "--every", "0.01", "--json")


@pytest.fixture
def aws(aws: AwsServer, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """conftest's account without pauses; the folder `wheels` has wheels, `data` a data set and other files."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(wheels.parent)
    Path("data/.git").mkdir(parents=True)
    for name in ("train.jsonl", "dev.jsonl", "credentials.json", "id_rsa", ".git/config"):
        Path("data", name).write_text(ROW)
    return aws


def keys(aws: AwsServer, channel: str) -> set[str]:
    """The names of a channel's objects."""
    listed = aws.boto3("s3").list_objects_v2(Bucket=BUCKET, Prefix=f"neuron-sum/inputs/{channel}/")
    return {item["Key"].split("/", 4)[4] for item in listed.get("Contents", [])}


def with_data(source: str = "jsonl") -> tuple[str, ...]:
    return (*TRAIN, f"data.source={source}", f"data.path={Path('data').resolve()}")


def test_only_the_files_of_a_data_set_are_uploaded(aws: AwsServer) -> None:
    told(neuron_sum(*with_data()))
    assert keys(aws, "data") == {"train.jsonl", "dev.jsonl"}


HUB = {
    "names of splits": (["train.jsonl", "dev.jsonl.gz", "credentials.json"], (), {"train.jsonl", "dev.jsonl.gz"}),
    "a named file": (["train.jsonl", "sft.jsonl"], ("data.files.train=sft",), {"train.jsonl", "sft.jsonl"}),
    "saved": (["dataset_dict.json", "train/state.json", "rest/data.arrow"], (), None),
    "a card": (["README.md", "rest.jsonl", "train.jsonl", "key.pem"], (), {"README.md", "rest.jsonl", "train.jsonl"}),
}


@pytest.mark.parametrize("kind", HUB)
def test_only_the_files_that_datasets_reads_are_uploaded(kind: str, tmp_path: Path) -> None:
    written, overrides, expected = HUB[kind]
    for name in written:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("configs:\n")
    recipe = load_recipe("tiny", ["data.source=hub", f"data.path={tmp_path}", *overrides])
    [found] = [each for each in inputs.channels(recipe, tmp_path, None) if each.name == "data"]
    assert set(found.files) == (expected or set(written))


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no data")
    recipe = load_recipe("tiny", ["data.source=hub", f"data.path={tmp_path}"])
    with pytest.raises(DataError, match="has no data files"):
        inputs.channels(recipe, tmp_path, None)


def test_only_the_files_of_a_model_are_uploaded(aws: AwsServer, micro_run: Path) -> None:
    model = Path("model")
    model.mkdir()
    for path in (micro_run / "checkpoint").iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    for name in ("token", "credentials.json", "optimizer.pt"):
        (model / name).write_text("secret")
    told(neuron_sum(*TRAIN, f"model.name_or_path={model.resolve()}", "model.config=null"))
    uploaded = keys(aws, "model")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= uploaded
    assert not uploaded & {"token", "credentials.json", "optimizer.pt"}


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_link_that_leaves_the_folder_is_refused(aws: AwsServer, linked: str) -> None:
    Path("private").mkdir()
    Path("private/train-1.jsonl").write_text(ROW)
    Path("data/train.jsonl").unlink()
    if linked == "file":
        Path("data/train.jsonl").symlink_to(Path("private/train-1.jsonl").resolve())
    else:
        Path("data/train").symlink_to(Path("private").resolve())
    error = failed(neuron_sum(*with_data()), 4)
    assert "is a link to" in error and "Copy" in error
    assert not [call for call in aws.calls if "PUT" in call or "Create" in call]


def test_a_changed_object_of_the_same_size_is_replaced(aws: AwsServer) -> None:
    told(neuron_sum(*TRAIN))
    s3 = aws.boto3("s3")
    [wheel] = s3.list_objects_v2(Bucket=BUCKET, Prefix="neuron-sum/inputs/wheelhouse/")["Contents"]
    content = s3.get_object(Bucket=BUCKET, Key=wheel["Key"])["Body"].read()
    for poisoned in ({"Body": b"x" * len(content)}, {"Body": b"x" * len(content), "ChecksumAlgorithm": "SHA256"}):
        s3.put_object(Bucket=BUCKET, Key=wheel["Key"], **poisoned)
        told(neuron_sum(*TRAIN))
        assert s3.get_object(Bucket=BUCKET, Key=wheel["Key"])["Body"].read() == content
    before = aws.calls.count("s3.PUT Object")
    told(neuron_sum(*TRAIN, "--detach"))
    assert aws.calls.count("s3.PUT Object") == before


def test_a_large_file_has_the_checksum_of_its_parts(
    aws: AwsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 reports the hash of the hashes of an upload's parts, which boto3 sends for larger files."""
    from sagemaker_jobs.aws.account import Account

    path = tmp_path / "large"
    path.write_bytes(b"0123456789abcdef" * (1 << 20) + b"end")
    account, seen = Account(), []
    put = account.client("s3").meta.events

    def sent(params: Any, **_: Any) -> None:
        seen.append(params["MultipartUpload"]["Parts"])

    put.register("before-parameter-build.s3.CompleteMultipartUpload", sent)
    account.upload(path, BUCKET, "neuron-sum/inputs/large", {})
    put.unregister("before-parameter-build.s3.CompleteMultipartUpload", sent)
    import base64
    import hashlib

    parts = [base64.b64decode(part["ChecksumSHA256"]) for part in seen[0]]
    whole = base64.b64encode(hashlib.sha256(b"".join(parts)).digest()).decode()
    assert channels.s3_checksum(path) == f"{whole}-{len(parts)}" and len(parts) == 3
