"""AWS over HTTP on 127.0.0.1: moto's server with missing parts added, and with faults on demand.

boto3 reaches it through AWS_ENDPOINT_URL and fake credentials, so that the product does not know about it. Each patch
states what AWS does. A fault happens to the n-th request, whatever it is.
"""

import contextlib
import io
import json
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta
from functools import cache
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import aws_builds
import aws_endpoints
import aws_iam
import aws_registry
import aws_requests
import aws_scaling
import aws_stacks
import aws_storage
import aws_training
import aws_transforms
import boto3
from aws_forks import Forks
from aws_script import ACCOUNT, REGION, Script
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders
from moto.core.botocore_stubber import MockRawResponse
from moto.moto_api._internal import moto_api_backend
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from sagemaker_jobs.aws.names import AwsContext
from sagemaker_jobs.aws.policies import caller_policy
from sagemaker_jobs.stack.template import Settings, render

READABLE = ("theirs/", "other/")
"""Further places that the caller may read."""
Fault = Literal["before", "lost", "throttled", "killed before", "killed after"]
TARGETS = {
    "AWSPriceListService": "pricing",
    "Logs_20140328": "logs",
    "SageMaker": "sagemaker",
    "CodeBuild_20161006": "codebuild",
    "AmazonEC2ContainerRegistry_V20150921": "ecr",
    "AnyScaleFrontendService": "application-autoscaling",
    "ServiceQuotasV20190624": "service-quotas",
    "GraniteServiceVersion20100801": "cloudwatch",
    "AWSBudgetServiceGateway": "budgets",
    "AWSInsightsIndexService": "ce",
    "AmazonSQS": "sqs",
}
"""Services that name the operation in a header."""

FAULTS: tuple[Fault, ...] = ("before", "lost", "throttled", "killed before", "killed after")


_SESSION = boto3.session.Session()


class Dropped(Exception):
    """The connection was closed without a reply."""


class AwsServer:
    """The server, its script, and its record of requests.

    Attributes:
        calls: `service.Operation` of every request, in order.
        point: The number of the request that fails, from 0; None: no fault.
        fault: The failure mode.
        client: The process to kill.
        hit: The call that failed.
        forks: The source of such processes; None until one is needed.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self.script = Script()
        self.calls: list[str] = []
        self.point: int | None = None
        self.fault: Fault = "before"
        self.client: int | None = None
        self.hit: str | None = None
        self.forks: Forks | None = None
        self._lock = threading.Lock()
        self._clients: dict[str, Any] = {}
        self._moto = DomainDispatcherApplication(create_backend_app)
        # moto searches all of its folders for each call.
        self._moto.get_backend_for_host = cache(self._moto.get_backend_for_host)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        aws_training.patch(lambda: self.script)
        aws_endpoints.patch(lambda: self.script)
        aws_scaling.patch(lambda: self.script)
        aws_builds.patch(lambda: self.script)
        aws_transforms.patch(lambda: self.script)
        aws_registry.patch(lambda: self.script)
        aws_storage.patch()
        self._stacks = aws_stacks.Stacks(lambda: self.script)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        if self.forks is not None:
            self.forks.close()
        self._server.shutdown()
        self._server.server_close()

    @property
    def ways_out(self) -> list[str]:
        """Requests for other hosts, which a process sends through its proxy."""
        return [call for call in self.calls if "CONNECT" in call or "://" in call]

    def reset(self) -> None:
        """Empties the account."""
        moto_api_backend.reset()
        self.script, self.point, self.client, self.hit = Script(), None, None, None
        self.calls.clear()

    def set_up(self, **options: Any) -> None:
        """Creates the stack of an earlier `aws setup`; from now on, the caller has the printed policy only.

        Args:
            options: The fields of Settings.
        """
        site = AwsContext(ACCOUNT, REGION)
        parameters = Settings(**options).parameters(site, {})
        aws_stacks.create(self.script, render(site, parameters), parameters)
        self.script.policies = [caller_policy(site, kms_key=options.get("kms_key"), reads=READABLE)]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            # A request to another host would arrive here and be recorded.
            "HTTP_PROXY": self.url,
            "HTTPS_PROXY": self.url,
            "NO_PROXY": "127.0.0.1",
        }

    def boto3(self, service: str) -> Any:
        """A client for the test; its calls are not counted."""
        if service in self._clients:
            return self._clients[service]
        made = self._clients[service] = _SESSION.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id="none",
            aws_secret_access_key="none",
            config=boto3.session.Config(user_agent_extra="the-test"),
        )
        made.meta.events.register("before-send", self.directly)
        return made

    def directly(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        """The answer to a client of this process, without sockets and threads, which take half of a call's time."""
        url, body = urlsplit(request.url), request.body or b""
        body = body.read() if hasattr(body, "read") else body.encode() if isinstance(body, str) else body
        headers = {
            name.upper().replace("-", "_"): value.decode() if isinstance(value, bytes) else value
            for name, value in request.headers.items()
        }
        environ = {
            "REQUEST_METHOD": request.method,
            "PATH_INFO": unquote(url.path),
            "QUERY_STRING": url.query,
            "RAW_URI": request.url.removeprefix(self.url),
            "REQUEST_URI": request.url.removeprefix(self.url),
            "SERVER_NAME": url.hostname,
            "SERVER_PORT": str(url.port),
            "HTTP_HOST": url.netloc,
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": headers.get("CONTENT_TYPE", ""),
            **{f"HTTP_{name}": value for name, value in headers.items()},
        }
        told: list[Any] = []
        content = b"".join(self._answer(environ, lambda *status: told.append(status)))
        status, fields = told[-1][:2]
        answered = HTTPHeaders()
        for name, value in fields:
            answered[name] = value
        return AWSResponse(request.url, int(status.split()[0]), answered, MockRawResponse(content))

    def everything(self) -> list[str]:
        """Everything in the account except records: the resources that a cleanup must delete, by the ledger's kinds."""
        sagemaker, builds = self.boto3("sagemaker"), self.boto3("codebuild")
        found = [
            f"training-job {job['TrainingJobName']} {job['TrainingJobStatus']}"
            for job in sagemaker.list_training_jobs()["TrainingJobSummaries"]
            if job["TrainingJobStatus"] in ("InProgress", "Stopping")
        ]
        found += [
            f"transform-job {job['TransformJobName']} {job['TransformJobStatus']}"
            for job in sagemaker.list_transform_jobs()["TransformJobSummaries"]
            if job["TransformJobStatus"] in ("InProgress", "Stopping")
        ]
        for kind, operation, key in (
            ("model", "list_models", "Model"),
            ("endpoint", "list_endpoints", "Endpoint"),
            ("endpoint-config", "list_endpoint_configs", "EndpointConfig"),
        ):
            found += [f"{kind} {item[f'{key}Name']}" for item in getattr(sagemaker, operation)()[f"{key}s"]]
        found += [f"schedule {item['Name']}" for item in self.boto3("scheduler").list_schedules()["Schedules"]]
        scaling = self.boto3("application-autoscaling").describe_scalable_targets(ServiceNamespace="sagemaker")
        found += [f"scaling-target {item['ResourceId']}" for item in scaling["ScalableTargets"]]
        if ids := builds.list_builds()["ids"]:
            running = [
                item for item in builds.batch_get_builds(ids=ids)["builds"] if item["buildStatus"] == "IN_PROGRESS"
            ]
            variables = [each for item in running for each in item["environment"]["environmentVariables"]]
            found += [
                f"build neuron-sum-{each['value']}-build" for each in variables if each["name"] == "NEURON_SUM_RUN"
            ]
        return found

    def kept(self) -> list[str]:
        """The contents of buckets and repositories, which are kept unless their deletion is requested."""
        s3, ecr = self.boto3("s3"), self.boto3("ecr")
        found = [
            f"object {item['Key']}"
            for bucket in s3.list_buckets()["Buckets"]
            for item in s3.list_objects_v2(Bucket=bucket["Name"]).get("Contents", [])
        ]
        for repository in ecr.describe_repositories()["repositories"]:
            images = ecr.describe_images(repositoryName=repository["repositoryName"])["imageDetails"]
            found += [f"image {tag}" for image in images for tag in image.get("imageTags", ["untagged"])]
        return found

    def stack_resources(self) -> list[str]:
        """The buckets, repositories, projects and roles in the account, without the service-linked role."""
        roles = self.boto3("iam").list_roles()["Roles"]
        return [
            *(f"bucket {item['Name']}" for item in self.boto3("s3").list_buckets()["Buckets"]),
            *(f"repository {r['repositoryName']}" for r in self.boto3("ecr").describe_repositories()["repositories"]),
            *(f"project {name}" for name in self.boto3("codebuild").list_projects()["projects"]),
            *(f"role {role['RoleName']}" for role in roles if "aws-service-role" not in role["Path"]),
        ]

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        call = _name_of(environ, body)
        if call.startswith("sagemaker.List") and call != "sagemaker.ListTags" and b'"MaxResults"' not in body:
            # "This value defaults to 10" (botocore, ListEndpoints); moto's pages have 100.
            body = json.dumps({**json.loads(body), "MaxResults": 10}).encode()
            environ["CONTENT_LENGTH"] = str(len(body))
        environ["wsgi.input"] = io.BytesIO(body)
        if "the-test" in environ.get("HTTP_USER_AGENT", ""):
            return self._stack(call, body, start_response, of_a_test=True) or list(self._moto(environ, start_response))
        with self._lock:  # one after another, so that the n-th request is well-defined
            number = len(self.calls)
            self.calls.append(call)
            dead = self.point is not None and number > self.point and self.fault in ("before", "lost")
            faulty = number == self.point
            if faulty:
                self.hit = call
            if dead or (faulty and self.fault in ("before", "killed before")):
                self._kill()
                _drop(environ)
            every = self.script.throttled_every
            if (faulty and self.fault == "throttled") or (every is not None and number % every == every - 1):
                return _throttled(environ, start_response)
            if (refusal := self.script.refusals.get(call)) is not None:
                return _refusal(environ, start_response, *refusal)
            policies = self.script.policies
            if aws_iam.THE_JOB in environ.get("HTTP_USER_AGENT", ""):
                policies = aws_iam.policies_of_jobs()
            if policies is not None and (denied := aws_iam.refused(policies, call, environ, body)):
                return _refusal(environ, start_response, "AccessDeniedException", denied, 403)
            if found := _faults(call, body):
                return _refusal(environ, start_response, "ValidationException", "; ".join(found), 400)
            if call == "pricing.GetProducts":
                answer = self._price_list(environ, body, start_response)
            elif call in ("service-quotas.ListServiceQuotas", "service-quotas.ListAWSDefaultServiceQuotas"):
                answer = self._quotas(environ, body, start_response, defaults="Default" in call)
            elif call.endswith(" Bucket ?policy"):
                answer = self._bucket_policy(environ, body, start_response)
            elif call.startswith("budgets."):
                answer = self._budget(environ, body, start_response, call.partition(".")[2])
            elif call == "ce.GetCostAndUsage":
                answer = self._costs(body, start_response)
            else:
                answer = self._stack(call, body, start_response) or list(self._moto(environ, start_response))
            if faulty and self.fault in ("lost", "killed after"):
                self._kill()
                _drop(environ)
            return answer

    def _stack(
        self, call: str, body: bytes, start_response: Callable[..., Any], *, of_a_test: bool = False
    ) -> list[bytes] | None:
        """The answer to a call of CloudFormation; None for another service."""
        service, _, operation = call.partition(".")
        if service != "cloudformation":
            return None
        status, text = self._stacks.answer(operation, body, of_a_test=of_a_test)
        answer = text.encode()
        start_response(f"{status} x", [("Content-Type", "text/xml"), ("Content-Length", str(len(answer)))])
        return [answer]

    def _kill(self) -> None:
        if self.fault.startswith("killed") and self.client is not None:
            os.kill(self.client, signal.SIGKILL)

    def _price_list(self, environ: Any, body: bytes, start_response: Callable[..., Any]) -> list[bytes]:
        """moto has no Price List. AWS answers with JSON in strings, one product for each component of an instance."""
        if self.script.prices is None:
            return _refusal(environ, start_response, "AccessDeniedException", "not authorized to ask for prices", 400)
        filters = {item["Field"]: item["Value"] for item in json.loads(body)["Filters"]}
        assert filters["regionCode"] == REGION
        products = [
            json.dumps(
                {
                    "product": {"attributes": {"instanceName": instance, "component": component, "regionCode": REGION}},
                    "terms": {
                        "OnDemand": {
                            "a": {"priceDimensions": {"b": {"unit": "Hrs", "pricePerUnit": {"USD": f"{price:.10f}"}}}}
                        }
                    },
                }
            )
            for (instance, component), prices in self.script.prices.items()
            for price in prices
            if instance == filters["instanceName"]
        ]
        return _json(start_response, "200 OK", {"FormatVersion": "aws_v1", "PriceList": products})

    def _quotas(self, environ: Any, body: bytes, start_response: Callable[..., Any], *, defaults: bool) -> list[bytes]:
        """moto has no SageMaker quotas. AWS returns at most 100 per page, here two; there is no search by name.

        "For some quotas, only the default values are available": ListServiceQuotas leaves them out (its documentation).
        """
        if self.script.quotas is None:
            return _refusal(environ, start_response, "AccessDeniedException", "not authorized to list quotas", 400)
        asked = json.loads(body)
        service, first = asked["ServiceCode"], int(asked.get("NextToken", 0))
        listed = [
            {"ServiceCode": service, "QuotaCode": f"L-{number:08X}", "QuotaName": name, "Value": value}
            for number, (name, value) in enumerate(
                (self.script.default_quotas if defaults else self.script.quotas).items()
            )
            if ("builds" in name) == (service == "codebuild")
        ]
        more = {"NextToken": str(first + 2)} if first + 2 < len(listed) else {}
        return _json(start_response, "200 OK", {"Quotas": listed[first : first + 2], **more})

    def _bucket_policy(self, environ: Any, body: bytes, start_response: Callable[..., Any]) -> list[bytes]:
        """moto does not evaluate the condition of a bucket's policy."""
        policies, bucket = self.script.bucket_policies, environ["PATH_INFO"].strip("/")
        if environ["REQUEST_METHOD"] == "PUT":
            policies[bucket] = json.loads(body)
            return _json(start_response, "204 No Content", {})
        if bucket not in policies:
            return _refusal(environ, start_response, "NoSuchBucketPolicy", "The bucket policy does not exist", 404)
        return _json(start_response, "200 OK", policies[bucket])

    def _budget(self, environ: Any, body: bytes, start_response: Callable[..., Any], operation: str) -> list[bytes]:
        """moto's budgets have no filters and no spend."""
        given, budgets = json.loads(body), self.script.budgets
        name = given.get("BudgetName") or given["Budget"]["BudgetName"]
        if operation == "CreateBudget":
            if name in budgets:
                return _refusal(environ, start_response, "DuplicateRecordException", "the budget already exists", 400)
            budgets[name] = {**given["Budget"], "subscribers": given["NotificationsWithSubscribers"]}
            return _json(start_response, "200 OK", {})
        if (found := budgets.get(name)) is None:
            return _refusal(environ, start_response, "NotFoundException", f"Unable to get budget: {name}", 400)
        if operation == "DeleteBudget":
            del budgets[name]
            return _json(start_response, "200 OK", {})
        budget = {key: value for key, value in found.items() if key != "subscribers"}
        spend = {"ActualSpend": {"Amount": str(self.script.spent), "Unit": "USD"}}
        return _json(start_response, "200 OK", {"Budget": {**budget, "CalculatedSpend": spend}})

    def _costs(self, body: bytes, start_response: Callable[..., Any]) -> list[bytes]:
        """Cost Explorer returns one result per day, and its groups; services without costs have none."""
        given = json.loads(body)
        *chosen, without = given["Filter"]["And"]
        region, services = (each["Dimensions"]["Values"] for each in chosen)
        assert without["Not"]["Dimensions"] == {"Key": "RECORD_TYPE", "Values": ["Credit", "Refund", "Tax"]}
        assert region == [REGION] and given["Granularity"] == "DAILY"
        first, end = (date.fromisoformat(given["TimePeriod"][key]) for key in ("Start", "End"))
        groups = [
            {"Keys": [name], "Metrics": {"UnblendedCost": {"Amount": str(usd), "Unit": "USD"}}}
            for name, usd in self.script.costs.items()
            if name in services
        ]
        days = [
            {
                "TimePeriod": {"Start": f"{first + timedelta(days=number)}", "End": f"{first + timedelta(number + 1)}"},
                "Groups": groups if number == 0 else [],
                "Total": {},
                "Estimated": True,
            }
            for number in range((end - first).days)
        ]
        token = given.get("NextPageToken")  # a page has one day here
        number = int(token or 0)
        more = {"NextPageToken": str(number + 1)} if number + 1 < len(days) else {}
        return _json(start_response, "200 OK", {"ResultsByTime": days[number : number + 1], **more})


class _Quiet(WSGIRequestHandler):
    """Keeps connections open, as AWS does; werkzeug creates a thread and a connection for each call."""

    protocol_version = "HTTP/1.1"

    def log(self, *arguments: Any) -> None:
        pass

    def run_wsgi(self) -> None:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        told: list[Any] = []
        try:
            body = b"".join(self.server.app(self.make_environ(), lambda *status: told.append(status)))
        except (Dropped, ConnectionError):
            self.close_connection = True
            return
        code, _, reason = told[-1][0].partition(" ")
        headers = {name.lower(): value for name, value in told[-1][1]}
        headers.setdefault("content-length", str(len(body)))
        lines = [f"HTTP/1.1 {code} {reason}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        sent = b"" if self.command == "HEAD" or code in ("204", "304") else body
        self.wfile.write("\r\n".join(lines).encode("latin-1") + sent)


@contextlib.contextmanager
def only_loopback() -> Iterator[None]:
    """Any other connection of this process is an error of the test."""
    before = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"), f"a way out: {address}"
        before(self, address)

    socket.socket.connect = connect  # type: ignore[method-assign]
    try:
        yield
    finally:
        socket.socket.connect = before  # type: ignore[method-assign]


def _name_of(environ: dict[str, Any], body: bytes) -> str:
    """The operation: in a header (JSON), in the body (query), or given by method and path (S3)."""
    if environ["REQUEST_METHOD"] == "CONNECT" or "://" in environ.get("RAW_URI", ""):
        return f"CONNECT {environ.get('RAW_URI')}"
    if target := environ.get("HTTP_X_AMZ_TARGET"):
        service, operation = target.split(".")
        return f"{TARGETS[service]}.{operation}"
    if b"Action=" in body[:2000]:
        return f"{_service(environ)}.{parse_qs(body.decode())['Action'][0]}"
    if (service := _service(environ)) not in ("s3", "?"):  # REST: scheduler, SageMaker runtime
        return f"{service}.{environ['REQUEST_METHOD']} {'/'.join(environ['PATH_INFO'].split('/')[:2])}"
    what = "Object" if environ["PATH_INFO"].strip("/").partition("/")[2] else "Bucket"
    query = (environ["QUERY_STRING"] or "").split("=")[0].split("&")[0]
    return f"s3.{environ['REQUEST_METHOD']} {what}" + (f" ?{query}" if query else "")


def _faults(call: str, body: bytes) -> list[str]:
    """Names and tags that break a pattern or a length of the service's description; moto accepts them."""
    service, _, operation = call.partition(".")
    if service not in TARGETS.values() or " " in operation or not body.startswith(b"{"):  # not a REST call
        return []
    return aws_requests.faults(aws_requests.model(service).operation_model(operation).input_shape, json.loads(body))


def _service(environ: dict[str, Any]) -> str:
    found = re.search(r"Credential=[^/]+/\d+/[^/]+/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    return found.group(1) if found else "?"


def _drop(environ: dict[str, Any]) -> None:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise Dropped


def _json(start_response: Callable[..., Any], status: str, value: Any) -> list[bytes]:
    body = json.dumps(value).encode()
    start_response(status, [("Content-Type", "application/x-amz-json-1.1"), ("Content-Length", str(len(body)))])
    return [body]


def _refusal(
    environ: dict[str, Any], start_response: Callable[..., Any], code: str, message: str, status: int
) -> list[bytes]:
    if environ.get("HTTP_X_AMZ_TARGET"):
        return _json(start_response, f"{status} No", {"__type": code, "message": message})
    if _service(environ) in ("scheduler", "sagemaker"):  # REST with JSON: the code is in a header
        body = json.dumps({"Message": message}).encode()
        headers = [("Content-Type", "application/json"), ("x-amzn-ErrorType", code)]
        start_response(f"{status} No", [*headers, ("Content-Length", str(len(body)))])
        return [body]
    error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    body = (error if _service(environ) == "s3" else f"<ErrorResponse>{error}</ErrorResponse>").encode()
    if environ["REQUEST_METHOD"] == "HEAD":
        body = b""
    start_response(f"{status} No", [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
    return [body]


def _throttled(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    if _service(environ) == "s3":
        return _refusal(environ, start_response, "SlowDown", "Please reduce your request rate.", 503)
    return _refusal(environ, start_response, "ThrottlingException", "Rate exceeded", 400)
