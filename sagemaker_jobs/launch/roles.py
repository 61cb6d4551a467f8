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
    """A role of a run's, with its one policy.

    Args:
        run: Whose.
        region: Where what has the role runs.
        trust: Who may become it.
        policy: What it may.
        kind: What its name ends with: role, build-role or expiry-role.
        policy_name: Where commands of a run share a role, each has a policy of its own there.
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
    """The role of a run's jobs and endpoint: what all of them need, and what this one needs besides.

    Two policies, for a role's may have 10,240 characters in all (IAM's quotas), and what one command needs must not
    replace what another's job still needs.

    Args:
        run: Whose.
        place: Where.
        isolation: A key and a VPC.
        stage: Whose needs are added.
        reads: S3 addresses of the caller's.
        image: The caller's own.
    """
    site = place.site
    common = policies.job_policy(site, place.bucket, run=run)
    calls = role_calls(run, site.region, policies.trust_policy(site.account), common)
    own = policies.extra_statements(site, isolation, reads=reads, image=image)
    if not own:
        return calls
    document = json.dumps(policies.policy(*own))
    request = {"RoleName": run.name("role"), "PolicyName": stage, "PolicyDocument": document}
    return (*calls, Call("iam", "put_role_policy", request))
