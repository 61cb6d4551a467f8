"""Known causes of failures on Neuron and SageMaker, as data: the log line, its meaning and the remedy.

A pattern is as narrow as the message allows. If a line may have several causes, the text says so and names the way to
find out which. The tests have at least one real line of a public thread for each cause.
"""

import re
from dataclasses import dataclass

SDK_ISSUES = "https://github.com/aws-neuron/aws-neuron-sdk/issues/"
SDK_DOCS = "https://awsdocs-neuron.readthedocs-hosted.com/en/latest/"
SAMPLES_ISSUES = "https://github.com/aws-neuron/aws-neuron-samples/issues/"
SAGEMAKER_DOCS = "https://docs.aws.amazon.com/sagemaker/latest/dg/"
RUNTIME_DOCS = SDK_DOCS + "neuron-runtime/nrt-troubleshoot.html"


@dataclass(frozen=True)
class Cause:
    """One cause.

    Attributes:
        name: A short name that does not change.
        patterns: Literal texts, or pairs of a mark and a regular expression. A line matches if one of them occurs in
            it; case is ignored. The mark is literal text in every match; the regular expression is only tried on lines
            with its mark.
        cause: An explanation of the failure.
        remedy: The steps that fix it.
        source: The upstream issue or document.
    """

    name: str
    patterns: tuple[str | tuple[str, str], ...]
    cause: str
    remedy: str
    source: str

    def marked_patterns(self) -> list[tuple[str, str]]:
        """The mark, in lower case, and the regular expression of each pattern."""
        pairs = [(item, re.escape(item)) if isinstance(item, str) else item for item in self.patterns]
        return [(mark.lower(), regex) for mark, regex in pairs]


CAUSES = (
    # The compiler
    Cause(
        "compiler-killed",
        (
            "[F137]",
            ("-cc was forcibly killed", r"neuronx?-cc was forcibly killed"),
            ("-cc failed with -9", r"neuronx?-cc failed with -9\b"),
            ("Compile command returned: -9", r"Compile command returned: -9\b"),
        ),
        "the compiler was killed, nearly always because the host's memory ran out",
        "compile on an instance with more host memory (a compile for inf2 needs no device), compile fewer graphs at a "
        "time, or use smaller buckets or -O1",
        SAMPLES_ISSUES + "10",
    ),
    Cause(
        "process-killed",
        (
            ("Killed", r"^\s*Killed\s*$"),
            ("Out of memory: Killed process ", r"Out of memory: Killed process \d+"),
            "oom-kill:",
        ),
        "the kernel killed a process; `Killed` alone does not give the reason, `dmesg | grep -i oom` does",
        "if memory ran out, use an instance with more host memory, smaller batches or buckets, or fewer processes",
        SDK_ISSUES + "1222",
    ),
    Cause(
        "too-many-instructions",
        (
            "Too many instructions after unroll",
            "generated too many instructions",
            ("Number of instructions (", r"Number of instructions \(\d+\) is over the threshold"),
            "NCC_EBVF030",
            "NCC_EVRF007",
        ),
        "the graph is larger than the compiler accepts",
        "use a smaller batch or sequence length, -O1, or more cores for the model (tensor_parallel_size)",
        SDK_DOCS + "compiler/error-codes/EBVF030.html",
    ),
    Cause(
        "graph-over-device-memory",
        (
            ("Estimated peak HBM usage (", r"Estimated peak HBM usage \([\d.]+\) exceeds"),
            ("NCC_EOOM00", r"NCC_EOOM00\d"),
            "NCC_EVRF009",
        ),
        "the compiled graph would not fit in the 16 GB of a NeuronCore, so the compiler rejects it",
        "use a smaller batch or sequence length, bf16, gradient checkpointing, or more cores for the model; "
        "`neuron-sum doctor RECIPE --instance NAME` estimates the memory beforehand",
        SDK_ISSUES + "884",
    ),
    Cause(
        "unsupported-operator",
        ("NCC_EUOC002", "NCC_EVRF001", "Unsupported CustomCall target", "unsupported HLO opcode"),
        "the graph has an operator that the compiler does not support",
        "use supported operators only; `neuronx-cc list-operators --framework XLA` lists them",
        SDK_DOCS + "compiler/error-codes/EVRF001.html",
    ),
    Cause(
        "dynamic-shape",
        ("NCC_EMOD025",),
        "the graph has a shape that is not fixed",
        "pad to fixed lengths; the buckets and shape plans of neuron-sum are fixed",
        SDK_DOCS + "compiler/error-codes/EMOD025.html",
    ),
    Cause(
        "compiler-defect",
        (
            "An Internal Compiler Error has occurred",
            "[F134]",
            "[F139]",
            "neuronx-cc terminated abnormally",
            "[TEN404]",
            "[INTERNAL_ERROR] [NCC_",
        ),
        "the compiler itself failed; the message after the code, if any, comes from it",
        "try -O1 and the newest compiler of the same SDK line; otherwise report it upstream with the compiler's work "
        "folder",
        SDK_ISSUES + "1075",
    ),
    Cause(
        "compiler-missing-library",
        (
            (": error while loading shared libraries: ",
             r"neuronxcc/\S{1,200}: error while loading shared libraries: \S+"),
        ),
        "a system library that the compiler requires is not installed",
        "install the library; for libxml2.so.2, run `apt-get install libxml2`",
        "https://github.com/huggingface/optimum-neuron/issues/698",
    ),
    Cause(
        "cache-lock",
        ("Another process must be compiling",),
        "this process waits for a lock in the compile cache; if no neuronx-cc is running, the owner of the lock was "
        "killed",
        "if `pgrep neuronx-cc` finds none, run `find /var/tmp/neuron-compile-cache -name '*.lock' -delete`, with the "
        "folder of NEURON_COMPILE_CACHE_URL if that is set",
        SDK_DOCS + "about-neuron/arch/neuron-features/neuron-caching.html",
    ),
    Cause(
        "cached-failure",
        ("Got a cached failed neff",),
        "this graph failed to compile before, and the cache stores that",
        "fix the cause in the message of the first failure, then compile again with "
        "NEURON_CC_FLAGS=--retry_failed_compilation",
        SDK_DOCS + "about-neuron/arch/neuron-features/neuron-caching.html",
    ),
    # The runtime and the device
    Cause(
        "neff-incompatible",
        (
            "NEFF version mismatch",
            (" are not supported", r"NEFF version: \S{1,40} features: \S{1,40} are not supported"),
            "Unsupported hardware operator code",
            "Attempting to load an incompatible model",
            "NRT_UNSUPPORTED_NEFF_VERSION",
            (" status=10", r"nrt_load(_collectives)? status=10\b"),
        ),
        "the graph was compiled by a compiler that is incompatible with this runtime",
        "compile and run with the same SDK release (`neuron-sum doctor` prints the versions); compile again after a "
        "change",
        RUNTIME_DOCS,
    ),
    Cause(
        "neff-does-not-load",
        (
            "Nrt::Load failed",
            ("nrt_load", r"nrt_load(_collectives)? status=(?!4\b|10\b)\d+"),
            ("Failed to load NN: ", r"Failed to load NN: \S+"),
        ),
        "the runtime could not load a compiled graph; the line does not give the reason",
        "read the runtime's lines before it (TDRV, NMGR, ENC) for the reason: memory, cores in use, or another rank "
        "that has not loaded",
        SDK_ISSUES + "779",
    ),
    Cause(
        "device-memory",
        (
            "Failed to alloc DEVICE memory",
            ("Failed to allocate ", r"Failed to allocate \S{1,40} \(usage: [^)]{0,80}\) on ND \d+"),
            "Failure: NRT_RESOURCE in nrt_load",
            (" status=4 message=", r"nrt_\w+ status=4 message=\"?Allocation Failure"),
            ("device mempool [", r"device mempool \[\d+:\d+\] total \d+ occupied"),
            "Number of ONE TMPBUF pages requested exceeded",
        ),
        "the device memory of a NeuronCore ran out: 16 GB for the weights, graphs and tensors of all models on it",
        "use a smaller batch or sequence length, bf16, fewer models per core, or more cores for the model; "
        "`neuron-sum doctor RECIPE --instance NAME` estimates the memory beforehand",
        SDK_ISSUES + "1014",
    ),
    Cause(
        "cores-busy",
        (("Core(s) not available - Requested", r"Neuron ?Core\(s\) not available - Requested"),),
        "another process uses the NeuronCores that this one requests; a core belongs to one process at a time",
        "find the process with `neuron-ls` and end it, or assign different cores with NEURON_RT_VISIBLE_CORES",
        RUNTIME_DOCS,
    ),
    Cause(
        "no-device",
        ("No neuron device available", "This instance has no neuron devices", "Failed to discover neuron devices"),
        "the runtime finds no Neuron device: another kind of instance, no driver, or a container without the device",
        "run `ls /dev/neuron*` on the host; pass the device to a container with --device /dev/neuron0",
        SDK_ISSUES + "633",
    ),
    Cause(
        "driver-not-found",
        (
            "Unable to determine Neuron Driver version",
            "Unable to read compatible Driver version",
            "Please check /dev/neuron# is accessible",
        ),
        "the Neuron driver is not loaded, or not visible from this container",
        "run `sudo apt-get install aws-neuronx-dkms && sudo modprobe neuron`; start a container with "
        "--device /dev/neuron0",
        SDK_ISSUES + "415",
    ),
    Cause(
        "driver-too-old",
        (
            "This runtime requires Neuron Driver version",
            (") is not compatible with the installed",
             r"Neuron Runtime \(compatibility id: \d+\) is not compatible with the installed"),
        ),
        "the driver on the host is older than the runtime requires",
        "upgrade aws-neuronx-dkms on the host and reload it (rmmod neuron, modprobe neuron); on SageMaker, where AWS "
        "manages the host, use an image of an older SDK",
        SDK_ISSUES + "655",
    ),
    Cause(
        "runtime-not-initialized",
        (
            "The PyTorch Neuron Runtime could not be initialized",
            "Neuron runtime cannot be initialized; cannot determine the number",
        ),
        "the runtime did not start; this line does not give the reason",
        "read the lines before it, or the system log, for the reason: no device, no driver, or cores that another "
        "process uses (`neuron-ls`)",
        SAMPLES_ISSUES + "44",
    ),
    Cause(
        "topology",
        ("Unsupported topology. Supported number of Neuron Cores is",),
        "this number of cores cannot work together on this instance",
        "on trn1, use 1, 2, 8, 16 or a multiple of 32 cores",
        "https://github.com/huggingface/optimum-neuron/issues/619",
    ),
    Cause(
        "execution-timeout",
        (
            ("status=5 message=", r"status=5 message=\"?Timeout Exceeded"),
            (" timeout (", r"(inference|execution) timeout \(\d+ ms\) on"),
        ),
        "a graph did not finish within the runtime's time limit; often another rank is missing or still compiling",
        "find the first rank that failed; if all are running, raise the limit with NEURON_RT_EXEC_TIMEOUT (seconds)",
        SDK_ISSUES + "1028",
    ),
    # Versions
    Cause(
        "torch-mismatch",
        (
            (": undefined symbol", r"(_XLAC\.\S{1,100}|libtorchneuron\.so|libneuronxla\S{0,100}): undefined symbol"),
            (" in XLA_FLAGS", r"Unknown flags? in XLA_FLAGS"),
        ),
        "torch, torch_xla and torch-neuronx (or libneuronxla) are not from the same release",
        "run the command that `neuron-sum doctor` prints to install matching versions",
        SDK_ISSUES + "1012",
    ),
    Cause(
        "numpy-mismatch",
        (
            "A module that was compiled using NumPy 1.x cannot be run in",
            ("module compiled against API version 0x",
             r"module compiled against API version 0x\w+ but this version of numpy is"),
            "module 'numpy' has no attribute 'asscalar'",
            "RuntimeError: Numpy is not available",
        ),
        "numpy is newer or older than the one another package was built with; the compiler requires numpy below 2",
        "run the command that `neuron-sum doctor` prints to install the matching numpy",
        RUNTIME_DOCS,
    ),
    Cause(
        "sdk-missing",
        (
            ("No module named '", r"No module named '(torch_neuronx|neuronxcc|libneuronxla|neuronx_distributed)'"),
            "RuntimeError: neuronx-cc is not installed",
        ),
        "the AWS Neuron packages are not installed; PyPI has only placeholders with their names",
        "run the command that `neuron-sum doctor` prints, which uses the AWS Neuron package index; or use a Neuron "
        "image",
        SDK_DOCS + "setup/index.html",
    ),
    # SageMaker, before the job or endpoint runs
    Cause(
        "quota",
        (
            "ResourceLimitExceeded",
            ("The account-level service limit '", r"The account-level service limit '[^']{1,200}' is \d+"),
        ),
        "the account's quota is lower than this number of instances; for most types, new accounts have a quota of 0",
        "request an increase of the quota named in the line (Service Quotas, Amazon SageMaker); training, spot "
        "training, endpoints and transforms have separate quotas",
        "https://github.com/aws/amazon-sagemaker-examples/issues/307",
    ),
    Cause(
        "capacity",
        (
            "CapacityError: Unable to provision",
            "InsufficientInstanceCapacity",
            "EC2InsufficientCapacityError",
            "Insufficient capacity error from EC2",
        ),
        "AWS has no free instances of this type there at the moment; the account's quota is not the cause",
        "try again later, in another region or availability zone, or with another size",
        "https://github.com/DIAGNijmegen/rse-grand-challenge/issues/2631",
    ),
    Cause(
        "image-not-found",
        (
            "Requested image not found",
            "manifest unknown",
            ("pull access denied for ", r"pull access denied for \S+"),
            "CannotPullContainerError",
        ),
        "no image of that name and tag exists in that region and account",
        "use the name that `neuron-sum doctor RECIPE --instance NAME --region REGION` prints; log in to that registry "
        "first",
        "https://github.com/aws/deep-learning-containers/issues/3115",
    ),
    Cause(
        "image-permission",
        (
            ("does not grant ecr:", r"does not grant ecr:\w+"),
            (" permission for the image", r"does not have \w+ permission for the image"),
        ),
        "the job's role or the repository's policy does not allow pulling the image",
        "give the role ecr:BatchGetImage, ecr:GetDownloadUrlForLayer and ecr:BatchCheckLayerAvailability; for an AWS "
        "image, use the registry account of the job's region",
        "https://github.com/aws/deep-learning-containers/issues/759",
    ),
    Cause(
        "docker-hub-limit",
        (
            ("toomanyrequests: You have reached your ",
             r"toomanyrequests: You have reached your (unauthenticated )?pull rate limit"),
        ),
        "Docker Hub limits the pulls per IP address, and many users share the addresses of a build service",
        "use the base image from public.ecr.aws/docker/library, as `aws image` does for Docker's official images, or "
        "log in to Docker Hub",
        "https://github.com/sparcs-kaist/new-ara-api/pull/172",
    ),
    Cause(
        "architecture",
        ("exec format error",),
        "the image, or a program in it, is for another processor; most often it was built on an ARM machine",
        "build with `docker build --platform linux/amd64` (as the Dockerfile of `neuron-sum dockerfile` says)",
        "https://github.com/aws-samples/aws-lex-conv-faq/issues/8",
    ),
    Cause(
        "s3-denied",
        (
            ("when calling the ",
             r"when calling the (HeadObject|GetObject|PutObject|ListObjects\w*|ListBucket|HeadBucket) operation: "
             r"(Forbidden|Access ?Denied)"),
            ("AccessDenied", r"AccessDenied.{1,400}?s3:\w+"),
        ),
        "the role may not read or write that bucket or object, or the object does not exist, for which S3 reports the "
        "same",
        "check the address first; then give the role s3:GetObject, s3:PutObject and s3:ListBucket, and kms:Decrypt if "
        "the bucket has a key",
        "https://github.com/aws/sagemaker-python-sdk/issues/442",
    ),
    Cause(
        "not-authorized",
        (("is not authorized to perform: ", r"is not authorized to perform: (?!s3:)[\w-]+:\w+"),),
        "the caller or the job's role lacks the permission named in the line",
        "add that action for that resource to the role's policy (iam:PassRole to the caller's)",
        SAGEMAKER_DOCS + "sagemaker-roles.html",
    ),
    # SageMaker, while the job or endpoint runs
    Cause(
        "spot-interrupted",
        (
            ("SecondaryStatus", r"SecondaryStatus\W{1,8}Interrupted"),
            "managed spot training instances were interrupted",
        ),
        "the spot instance was reclaimed; SageMaker restarts the job when an instance is available",
        "do nothing if checkpoints are stored in S3: the next start restores /opt/ml/checkpoints and --resume "
        "continues from there",
        SAGEMAKER_DOCS + "model-managed-spot-training-status.html",
    ),
    Cause(
        "spot-wait-exceeded",
        ("MaxWaitTimeExceeded",),
        "the spot job was stopped because waiting and running took longer than MaxWaitTimeInSeconds",
        "wait longer, try another time or region, or run on demand; a new job with the same checkpoint address "
        "continues",
        SAGEMAKER_DOCS + "model-managed-spot-training-status.html",
    ),
    Cause(
        "run-time-exceeded",
        ("MaxRuntimeExceeded",),
        "the job was stopped because it ran longer than MaxRuntimeInSeconds; `Stopped` does not mean success",
        "set a longer limit; a new job with the same checkpoint address continues from the last checkpoint",
        SAGEMAKER_DOCS + "model-managed-spot-training-status.html",
    ),
    Cause(
        "ping",
        ("did not pass the ping health check",),
        "the container did not answer GET /ping on port 8080 with 200 in time; this line does not give the reason",
        "read the endpoint's log for the reason; if it was still loading or compiling, set a longer "
        "ContainerStartupHealthCheckTimeoutInSeconds and compile the graphs before deployment",
        SDK_ISSUES + "457",
    ),
    Cause(
        "invoke-timeout",
        ("Your invocation timed out while waiting for a response from container", "Read timeout on endpoint URL"),
        "the container did not answer within 60 s, SageMaker's limit for a request",
        "use fewer dialogues per request, smaller buckets or fewer beams; warm up at load, because the first call is "
        "slow; set serve.deadline_s to answer 503 before SageMaker's limit",
        "https://github.com/aws/sagemaker-python-sdk/issues/1119",
    ),
    Cause(
        "djl-worker-start",
        (
            "ai.djl.python.engine.PyProcess.startPythonProcess",
            "Python process startup time out",
            "Failed to initialize model: ",
            "Failed register workflow",
        ),
        "the Python worker of DJL Serving did not start or did not load the model in time; the line does not say which",
        "read the worker's lines before it for the reason; if loading is just slow, raise option.model_loading_timeout "
        "(240 s by default)",
        "https://github.com/awslabs/fmbench-orchestrator/issues/28",
    ),
    Cause(
        "disk-full",
        ("No space left on device",),
        "the disk is full; on SageMaker, the volume or /tmp, which is not on the volume",
        "set a larger VolumeSizeInGB, keep fewer checkpoints (train.save_total_limit), or move TMPDIR and the compile "
        "cache to the volume",
        SDK_ISSUES + "579",
    ),
)  # fmt: skip
