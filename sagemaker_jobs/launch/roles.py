"""Calls that create IAM roles and attach their policies."""

import json
from collections.abc import Sequence

from sagemaker_jobs.aws import policies
from sagemaker_jobs.aws.names import Run, role_path
from sagemaker_jobs.aws.place import Destination, NetworkSecurity
from sagemaker_jobs.launch.call import Call

ROLE_POLICY = "job"


def role_calls(
    run: Run,
    region: str,
    trust: policies.Policy,
    policy: policies.Policy,
    kind: str = "role",
    *,
    policy_name: str = ROLE_POLICY,
) -> tuple[Call, ...]:
    """Return the calls that create a role of a run with one policy.

    Args:
        run: The run that owns the role.
        region: The region in which the role is used.
        trust: The trust policy.
        policy: The permission policy.
        kind: The end of the role's name: role, build-role or expiry-role.
        policy_name: The policy's name, which differs between commands that share a role.
    """
    name = run.name(kind)
    return (
        Call(
            "iam",
            "create_role",
            {
                "RoleName": name,
                "Path": role_path(region),
                "AssumeRolePolicyDocument": json.dumps(trust),
                "Description": f"Of the run {run.id} of neuron-sum",
                "Tags": run.tags,
            },
            "role",
            name,
        ),
        Call(
            "iam",
            "put_role_policy",
            {
                "RoleName": name,
                "PolicyName": policy_name,
                "PolicyDocument": json.dumps(policy),
            },
        ),
    )


def job_role_calls(
    run: Run,
    place: Destination,
    isolation: NetworkSecurity,
    *,
    stage: str = "endpoint",
    reads: Sequence[str] = (),
    image: str | None = None,
) -> tuple[Call, ...]:
    """Return the calls that create the role of a run's jobs and endpoint, with a common and a stage's policy.

    There are two policies, because a role's policies may have 10,240 characters in total (IAM's quotas), and the
    policy of one command must not replace the policy that another command's job still needs.

    Args:
        run: The run that owns the role.
        place: The account, region and bucket of the run.
        isolation: Encryption and network settings.
        stage: The stage that needs the second policy, which gets its name.
        reads: Further S3 addresses that the stage reads.
        image: A custom image; None for the default.
    """
    site = place.site
    common = policies.job_policy(site, place.bucket, run=run)
    calls = role_calls(run, site.region, policies.trust_policy(site.account), common)
    further = policies.extra_statements(site, isolation, reads=reads, image=image)
    if not further:
        return calls
    document = json.dumps(policies.policy(*further))
    request = {"RoleName": run.name("role"), "PolicyName": stage, "PolicyDocument": document}
    return (*calls, Call("iam", "put_role_policy", request))
