"""The bucket that a launch creates or finds: its owner's settings are kept, and the keys that encrypt its objects."""

import json
from pathlib import Path
from typing import Any

import pytest
from aws_faults import hasten
from aws_requests import check
from aws_script import ACCOUNT, REGION
from aws_server import AwsServer
from in_process import neuron_sum

BUCKET = f"neuron-sum-{ACCOUNT}-{REGION}"
KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
OTHER = KEY.replace("1234abcd", "fedcba98")
TRAIN = ("aws", "train", "tiny", "--instance", "ml.c7i.4xlarge", "--wheelhouse", "wheels", "--detach", "--json")


@pytest.fixture
def aws(aws: AwsServer, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """conftest's account without pauses; the folder `wheels` has wheels."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(wheels.parent)
    return aws


def told(*words: str) -> str:
    """The standard error of a start, without the terminal's line breaks."""
    made = neuron_sum(*TRAIN, *words)
    assert made.exit_code == 0, made.stderr
    return " ".join(made.stderr.split())


def tags(aws: AwsServer) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in aws.boto3("s3").get_bucket_tagging(Bucket=BUCKET)["TagSet"]}


def rules(aws: AwsServer) -> dict[str, Any]:
    found = aws.boto3("s3").get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    return {rule["ID"]: rule for rule in found}


def default_key(aws: AwsServer) -> str:
    [rule] = aws.boto3("s3").get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["BucketKeyEnabled"] is True
    return str(rule["ApplyServerSideEncryptionByDefault"]["KMSMasterKeyID"])


@pytest.mark.parametrize("old", [{"Prefix": "logs/"}, {"Filter": {"Prefix": "logs/"}}], ids=["prefix", "filter"])
def test_settings_of_the_bucket_owner_are_kept(aws: AwsServer, old: dict[str, Any]) -> None:
    """Also if a kill left settings unset: neuron-sum's tag and rule are added to the existing ones."""
    s3 = aws.boto3("s3")
    s3.create_bucket(Bucket=BUCKET)
    s3.put_bucket_tagging(Bucket=BUCKET, Tagging={"TagSet": [{"Key": "cost-centre", "Value": "7"}]})
    theirs = {"ID": "theirs", "Status": "Enabled", "Expiration": {"Days": 9}, **old}
    s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": [theirs]})
    told()
    assert tags(aws) == {"cost-centre": "7", "neuron-sum-run": "all"}
    assert rules(aws).keys() == {"theirs", "parts-of-killed-uploads"}
    assert rules(aws)["theirs"]["Expiration"]["Days"] == 9
    assert len({"Filter" in rule for rule in rules(aws).values()}) == 1, "S3 takes no mixture of the two forms"
    s3.put_bucket_tagging(
        Bucket=BUCKET,
        Tagging={"TagSet": [*s3.get_bucket_tagging(Bucket=BUCKET)["TagSet"], {"Key": "later", "Value": "x"}]},
    )
    before = len(aws.calls)
    told()
    assert tags(aws) == {"cost-centre": "7", "neuron-sum-run": "all", "later": "x"}
    assert not {"s3.PUT Bucket ?tagging", "s3.PUT Bucket ?lifecycle"} & set(aws.calls[before:])
    s3.delete_bucket_tagging(Bucket=BUCKET)  # as if a kill had come after the bucket's creation
    s3.delete_bucket_lifecycle(Bucket=BUCKET)
    told()
    assert "neuron-sum-run" in tags(aws) and rules(aws).keys() == {"parts-of-killed-uploads"}


def test_a_bucket_created_with_a_key_encrypts_checkpoints_with_it(aws: AwsServer) -> None:
    dry = neuron_sum(*TRAIN, "--kms-key", KEY, "--dry-run")
    requests = json.loads(dry.stdout)["requests"]
    [encryption] = [each for each in requests if each["operation"] == "put_bucket_encryption"]
    check("s3", "PutBucketEncryption", encryption["request"])
    assert "checkpoints" not in told("--kms-key", KEY)
    assert default_key(aws) == KEY
    assert "checkpoints" not in told("--kms-key", KEY)
    warned = told("--kms-key", OTHER)
    assert f"checkpoints use the default encryption of {BUCKET} ({KEY}) instead of --kms-key" in warned
    assert default_key(aws) == KEY, "a bucket is all runs'"
    # A run without a key would have a role that may not use the bucket's key, and would lose its results.
    refused = neuron_sum(*TRAIN)
    assert refused.exit_code == 14
    assert f"encrypts with {KEY}, which the new role may not use" in refused.stderr
    assert f"--kms-key {KEY}, or --role" in refused.stderr


def test_the_encryption_of_an_existing_bucket_is_kept_and_reported(aws: AwsServer) -> None:
    assert "warning: checkpoints" not in told()
    assert f"checkpoints use the default encryption of {BUCKET}" in told("--kms-key", KEY)
    aws.boto3("s3").create_bucket(Bucket="own-bucket")
    own = ("--bucket", "own-bucket", "--kms-key", KEY)
    assert "checkpoints use the default encryption of own-bucket" in told(*own)
    aws.script.refusals["s3.GET Bucket ?encryption"] = ("AccessDenied", "Access Denied", 403)
    assert "own-bucket, which is unreadable" in told(*own)
    assert "is unreadable" not in told("--bucket", "own-bucket")
    assert "s3.PUT Bucket ?encryption" not in aws.calls


def test_a_kill_before_the_bucket_is_encrypted_is_repaired(aws: AwsServer) -> None:
    aws.boto3("s3").create_bucket(Bucket=BUCKET)
    assert "checkpoints" not in told("--kms-key", KEY)
    assert default_key(aws) == KEY
