"""Whether a request holds against AWS's own description of the service, without asking AWS."""

from functools import cache
from typing import Any

from neuron_sum.errors import AwsError, MissingExtraError
from sagemaker_jobs.launch.call import Call


def check(call: Call) -> None:
    """Refuses what botocore would not send: unknown or missing members, wrong types, lengths and ranges.

    Raises:
        AwsError: With what does not hold.
        MissingExtraError: If botocore is not installed.
    """
    try:
        from botocore import xform_name
        from botocore.validate import ParamValidator
    except ImportError as error:
        raise MissingExtraError("boto3", "aws") from error
    service = _service(call.service)
    operation = next((name for name in service.operation_names if xform_name(name) == call.operation), None)
    if operation is None:
        raise AwsError(f"{call.service} has no operation {call.operation}")
    report = ParamValidator().validate(call.request, service.operation_model(operation).input_shape)
    if report.has_errors():
        raise AwsError(f"{call.service} {operation} would be refused: {report.generate_report()}")


@cache
def _service(name: str) -> Any:
    import botocore.session

    return botocore.session.get_session().get_service_model(name)
