"""CloudFormation's functions, as far as neuron-sum's template uses them: a template with its parameters filled in."""

import re
from dataclasses import dataclass, field
from typing import Any

from aws_script import ACCOUNT, REGION

NAMES = {
    "AWS::S3::Bucket": "BucketName",
    "AWS::ECR::Repository": "RepositoryName",
    "AWS::IAM::Role": "RoleName",
    "AWS::Logs::LogGroup": "LogGroupName",
    "AWS::CodeBuild::Project": "Name",
    "AWS::S3::BucketPolicy": "Bucket",
    "AWS::SQS::Queue": "QueueName",
}
"""The property that names a resource of each type."""
REMOVED = object()


@dataclass
class Resolver:
    """The values of a template's expressions.

    Attributes:
        template: The template.
        parameters: The given parameters; others have their defaults.
        region, account, partition: The values of the pseudo parameters.
    """

    template: dict[str, Any]
    parameters: dict[str, str] = field(default_factory=dict)
    region: str = REGION
    account: str = ACCOUNT
    partition: str = "aws"

    def resources(self) -> dict[str, dict[str, Any]]:
        """The type and the properties of every resource whose condition holds, in the order of their dependencies."""
        return {
            name: {"Type": each["Type"], "Properties": self.value(each.get("Properties", {}))}
            for name, each in self.template["Resources"].items()
            if "Condition" not in each or self.condition(self.template["Conditions"][each["Condition"]])
        }

    def condition(self, node: dict[str, Any]) -> bool:
        [(function, arguments)] = node.items()
        if function == "Fn::Not":
            return not self.condition(arguments[0])
        if function == "Fn::And":
            return all(self.condition(argument) for argument in arguments)
        assert function == "Fn::Equals"
        left, right = (self.value(argument) for argument in arguments)
        return str(left) == str(right)

    def value(self, node: Any) -> Any:
        if isinstance(node, list):
            return [found for each in node if (found := self.value(each)) is not REMOVED]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            [(function, argument)] = node.items()
            if function == "Ref" or function.startswith("Fn::"):
                return self.function(function, argument)
        found = {name: self.value(each) for name, each in node.items()}
        return {name: each for name, each in found.items() if each is not REMOVED}

    def function(self, name: str, argument: Any) -> Any:
        if name == "Ref":
            return self.reference(argument)
        if name == "Fn::GetAtt":
            return self.attribute(*argument)
        if name == "Fn::If":
            which = 1 if self.condition(self.template["Conditions"][argument[0]]) else 2
            return self.value(argument[which])
        if name == "Fn::Join":
            return argument[0].join(self.value(argument[1]))
        assert name == "Fn::Sub", name
        text, given = (argument, {}) if isinstance(argument, str) else argument

        def filled(match: re.Match[str]) -> str:
            if match[1] in given:
                return str(self.value(given[match[1]]))
            return str(self.attribute(*match[1].split(".")) if "." in match[1] else self.reference(match[1]))

        return re.sub(r"\$\{([A-Za-z0-9:.]+)\}", filled, text)

    def reference(self, name: str) -> Any:
        pseudo = {
            "AWS::Region": self.region, "AWS::AccountId": self.account, "AWS::Partition": self.partition,
            "AWS::NoValue": REMOVED,
            "AWS::URLSuffix": "amazonaws.com.cn" if self.region.startswith("cn-") else "amazonaws.com",
        }  # fmt: skip
        if name in pseudo:
            return pseudo[name]
        if name in self.template["Parameters"]:
            parameter = self.template["Parameters"][name]
            value = self.parameters.get(name, str(parameter["Default"]))
            return value.split(",") if parameter["Type"] == "CommaDelimitedList" else value
        return self.name(name)

    def name(self, logical: str) -> Any:
        resource = self.template["Resources"][logical]
        return self.value(resource["Properties"][NAMES[resource["Type"]]])

    def attribute(self, logical: str, attribute: str) -> str:
        kind, name = self.template["Resources"][logical]["Type"], self.name(logical)
        site = f"{self.region}:{self.account}"
        assert attribute == "Arn"
        return {
            "AWS::SQS::Queue": f"arn:{self.partition}:sqs:{site}:{name}",
            "AWS::IAM::Role": f"arn:{self.partition}:iam::{self.account}:role/{name}",
            "AWS::Logs::LogGroup": f"arn:{self.partition}:logs:{site}:log-group:{name}:*",
        }[kind]
