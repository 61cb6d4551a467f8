"""The steps of a receipt and the cells that they settle, as data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One question that only an AWS account answers.

    Attributes:
        name: The name, the same in docs/status.md.
        expected: The result that the code relies on.
    """

    name: str
    expected: str


@dataclass(frozen=True)
class Step:
    """A part of the life cycle, which is carried out once.

    Attributes:
        name: The name.
        what: The step in words.
        cells: The cells that it settles.
        needs: The steps whose results it uses.
        follower: The step that needs the resources that this one leaves running.
    """

    name: str
    what: str
    cells: tuple[Cell, ...]
    needs: tuple[str, ...] = ()
    follower: str | None = None


SETUP, ACCOUNT, IMAGE_CPU, TRAIN, COMPILE_CPU = "setup", "account", "image-cpu", "train", "compile-cpu"
ENDPOINT, DEVICE, IMAGE_INF2, COMPILE_INF2 = "endpoint-cpu", "device", "image-inf2", "compile-inf2"
INF2, EXPIRY, DOWN, BILL = "endpoint-inf2", "expiry", "down", "bill"

STEPS = (
    Step(
        SETUP,
        "compares the stack with the template, or creates it",
        (Cell("stack", "CloudFormation creates it, or reports no difference"),),
    ),
    Step(
        ACCOUNT,
        "reads prices and quotas",
        (
            Cell("prices", "the Price List has one price per instance"),
            Cell("quota names", "AWS lists every quota by its name"),
        ),
        needs=(SETUP,),
    ),
    Step(
        IMAGE_CPU,
        "builds the serving image for CPUs in CodeBuild",
        (Cell("CPU image", "CodeBuild builds and pushes it"),),
        needs=(SETUP,),
    ),
    Step(
        TRAIN,
        "trains the recipe tiny on a CPU",
        (
            Cell("training job", "completes in the AWS image"),
            Cell("billed time", "at most the run time and twelve minutes"),
        ),
        needs=(SETUP,),
    ),
    Step(
        COMPILE_CPU,
        "compiles the trained run for CPUs",
        (Cell("compile job for CPU", "completes in the AWS image"),),
        needs=(TRAIN,),
    ),
    Step(
        DEVICE,
        "runs `neuron-sum receipt` on a Trainium instance",
        (
            Cell("device receipt", "all cells have a result"),
            Cell("driver of training hosts", "in the window of the platform"),
        ),
        needs=(SETUP,),
    ),
    Step(
        IMAGE_INF2,
        "builds the serving image for Inferentia2",
        (Cell("inf2 image", "CodeBuild builds and pushes it"),),
        needs=(SETUP,),
    ),
    Step(
        COMPILE_INF2,
        "compiles the trained run for Inferentia2 on a CPU",
        (Cell("compile job for inf2", "neuronx-cc completes without a device"),),
        needs=(TRAIN,),
    ),
    Step(
        ENDPOINT,
        "deploys it with autoscaling, sends a request and leaves the endpoint running",
        (
            Cell("CPU endpoint", "in service before its expiry"),
            Cell("autoscaling", "AWS accepts target and policy"),
            Cell("answer of the CPU endpoint", "a summary"),
        ),
        needs=(IMAGE_CPU, COMPILE_CPU),
        follower=EXPIRY,
    ),
    Step(
        INF2,
        "deploys it for a few minutes, sends a request and deletes the endpoint",
        (
            Cell("inf2 endpoint", "in service before its expiry"),
            Cell("answer of the inf2 endpoint", "a summary"),
            Cell("deletion", "the endpoint is gone after `aws down`"),
        ),
        needs=(IMAGE_INF2, COMPILE_INF2),
    ),
    Step(
        EXPIRY,
        "waits until EventBridge Scheduler has deleted the CPU endpoint",
        (
            Cell("expiry", "the scaled endpoint is deleted on time"),
            Cell("dead-letter queue", "has later calls with their reason"),
        ),
        needs=(ENDPOINT,),
    ),
)
"""The paid and the waiting steps in their order: few minutes pass between the endpoint that expires and `expiry`."""

LAST = (
    Step(
        DOWN,
        "deletes what the steps created, except artifacts",
        (Cell("nothing left", "no resource of the steps remains"), Cell("permissions", "AWS denies no call")),
    ),
    Step(
        BILL,
        "reads the costs of these days from Cost Explorer, a day later",
        (Cell("bill", "at most the maximum cost"),),
    ),
)
"""The steps at the end of every run of the command."""

ALL = {step.name: step for step in (*STEPS, *LAST)}
