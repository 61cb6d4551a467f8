"""Known causes of failures on Neuron and SageMaker, as data: what the log says, what it means, what to do.

A pattern is as narrow as the message allows: a line that may mean two things is told as what it says, with the way to
find out which. Real lines of public threads, one for each cause at least, are the test's data.
"""

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
        patterns: Regular expressions of which one is in the line; upper and lower case are the same.
        cause: What happened.
        remedy: What to do.
        source: The upstream issue or document.
    """

    name: str
    patterns: tuple[str, ...]
    cause: str
    remedy: str
    source: str


CAUSES = (
    # The compiler
    Cause(
        "compiler-killed",
        (
            r"\[F137\]",
            r"neuronx?-cc was forcibly killed",
            r"neuronx?-cc failed with -9\b",
            r"Compile command returned: -9\b",
        ),
        "the compiler was killed, nearly always because the host's memory ran out",
        "compile on an instance with more host memory (a compile for inf2 needs no device), fewer graphs at a time, "
        "smaller buckets, or -O1",
        SAMPLES_ISSUES + "10",
    ),
    Cause(
        "process-killed",
        (r"^\s*Killed\s*$", r"Out of memory: Killed process \d+", r"oom-kill:"),
        "the kernel killed a process; a bare `Killed` does not say why, `dmesg | grep -i oom` does",
        "if memory ran out: an instance with more host memory, smaller batches or buckets, fewer processes",
        SDK_ISSUES + "1222",
    ),
    Cause(
        "too-many-instructions",
        (
            r"Too many instructions after unroll",
            r"generated too many instructions",
            r"Number of instructions \(\d+\) is over the threshold",
            r"NCC_EBVF030", r"NCC_EVRF007",
        ),
        "the graph is larger than the compiler takes",
        "a smaller batch or sequence length, -O1, or the model over more cores (tensor_parallel_size)",
        SDK_DOCS + "compiler/error-codes/EBVF030.html",
    ),
    Cause(
        "graph-over-device-memory",
        (r"Estimated peak HBM usage \([\d.]+\) exceeds", r"NCC_EOOM00\d", r"NCC_EVRF009"),
        "the compiled graph would not fit the 16 GB of a NeuronCore, so the compiler refuses it",
        "a smaller batch or sequence length, bf16, gradient checkpointing, or the model over more cores; "
        "`neuron-sum doctor RECIPE --instance NAME` estimates first",
        SDK_ISSUES + "884",
    ),
    Cause(
        "unsupported-operator",
        (r"NCC_EUOC002", r"NCC_EVRF001", r"Unsupported CustomCall target", r"unsupported HLO opcode"),
        "the graph has an operator that the compiler does not know",
        "`neuronx-cc list-operators --framework XLA` lists those it knows; write the step with them",
        SDK_DOCS + "compiler/error-codes/EVRF001.html",
    ),
    Cause(
        "dynamic-shape",
        (r"NCC_EMOD025",),
        "the graph has a shape that is not fixed",
        "pad to fixed lengths; buckets and plans of neuron-sum are fixed",
        SDK_DOCS + "compiler/error-codes/EMOD025.html",
    ),
    Cause(
        "compiler-defect",
        (
            r"An Internal Compiler Error has occurred",
            r"\[F134\]", r"\[F139\]",
            r"neuronx-cc terminated abnormally",
            r"\[TEN404\]",
            r"\[INTERNAL_ERROR\] \[NCC_",
        ),
        "the compiler itself failed; the message behind the code, if there is one, is its own",
        "try -O1 and the newest compiler of the same SDK line; else report it upstream with the compiler's work folder",
        SDK_ISSUES + "1075",
    ),
    Cause(
        "compiler-missing-library",
        (r"neuronxcc/\S{1,200}: error while loading shared libraries: \S+",),
        "a system library that the compiler needs is not installed",
        "install it: for libxml2.so.2, apt-get install libxml2",
        "https://github.com/huggingface/optimum-neuron/issues/698",
    ),
    Cause(
        "cache-lock",
        (r"Another process must be compiling",),
        "this process waits for a lock in the compile cache; if no neuronx-cc runs, the lock's owner was killed",
        "if `pgrep neuronx-cc` finds none: find /var/tmp/neuron-compile-cache -name '*.lock' -delete, or where "
        "NEURON_COMPILE_CACHE_URL points",
        SDK_DOCS + "about-neuron/arch/neuron-features/neuron-caching.html",
    ),
    Cause(
        "cached-failure",
        (r"Got a cached failed neff",),
        "this graph failed to compile before, and the cache remembers that",
        "NEURON_CC_FLAGS=--retry_failed_compilation compiles it again; the first failure's own message is what to mend",
        SDK_DOCS + "about-neuron/arch/neuron-features/neuron-caching.html",
    ),
    # The runtime and the device
    Cause(
        "neff-incompatible",
        (
            r"NEFF version mismatch",
            r"NEFF version: \S{1,40} features: \S{1,40} are not supported",
            r"Unsupported hardware operator code",
            r"Attempting to load an incompatible model",
            r"NRT_UNSUPPORTED_NEFF_VERSION",
            r"nrt_load(_collectives)? status=10\b",
        ),
        "the graph was compiled by a compiler that this runtime does not fit",
        "compile and run with one SDK release (`neuron-sum doctor` names the versions); compile again after a change",
        RUNTIME_DOCS,
    ),
    Cause(
        "neff-does-not-load",
        (r"Nrt::Load failed", r"nrt_load(_collectives)? status=(?!4\b|10\b)\d+", r"Failed to load NN: \S+"),
        "the runtime could not load a compiled graph; the line does not say why",
        "the runtime's lines before it (TDRV, NMGR, ENC) do: memory, cores in use, or another rank that has not loaded",
        SDK_ISSUES + "779",
    ),
    Cause(
        "device-memory",
        (
            r"Failed to alloc DEVICE memory",
            r"Failed to allocate \S{1,40} \(usage: [^)]{0,80}\) on ND \d+",
            r"Failure: NRT_RESOURCE in nrt_load",
            r"nrt_\w+ status=4 message=\"?Allocation Failure",
            r"device mempool \[\d+:\d+\] total \d+ occupied",
            r"Number of ONE TMPBUF pages requested exceeded",
        ),
        "the device memory of a NeuronCore ran out: 16 GB for weights, graphs and tensors of every model on it",
        "a smaller batch or sequence length, bf16, fewer models on the core, or the model over more cores; "
        "`neuron-sum doctor RECIPE --instance NAME` estimates first",
        SDK_ISSUES + "1014",
    ),
    Cause(
        "cores-busy",
        (r"Neuron ?Core\(s\) not available - Requested",),
        "another process holds the NeuronCores that this one asks for; a core belongs to one process at a time",
        "`neuron-ls` shows who has them; end that process, or give each its own with NEURON_RT_VISIBLE_CORES",
        RUNTIME_DOCS,
    ),
    Cause(
        "no-device",
        (r"No neuron device available", r"This instance has no neuron devices", r"Failed to discover neuron devices"),
        "the runtime sees no Neuron device: another kind of instance, no driver, or a container without the device",
        "`ls /dev/neuron*` on the host; in a container pass it with --device /dev/neuron0",
        SDK_ISSUES + "633",
    ),
    Cause(
        "driver-not-found",
        (
            r"Unable to determine Neuron Driver version",
            r"Unable to read compatible Driver version",
            r"Please check /dev/neuron# is accessible",
        ),
        "the Neuron driver is not loaded, or not visible from this container",
        "sudo apt-get install aws-neuronx-dkms && sudo modprobe neuron; in a container pass --device /dev/neuron0",
        SDK_ISSUES + "415",
    ),
    Cause(
        "driver-too-old",
        (
            r"This runtime requires Neuron Driver version",
            r"Neuron Runtime \(compatibility id: \d+\) is not compatible with the installed",
        ),
        "the driver on the host is older than the runtime needs",
        "upgrade aws-neuronx-dkms on the host and reload it (rmmod neuron, modprobe neuron); on SageMaker the host is "
        "AWS's: use an image of an older SDK",
        SDK_ISSUES + "655",
    ),
    Cause(
        "runtime-not-initialized",
        (
            r"The PyTorch Neuron Runtime could not be initialized",
            r"Neuron runtime cannot be initialized; cannot determine the number",
        ),
        "the runtime did not start; this line does not say why",
        "the lines before it, or the system log, do: no device, no driver, or cores that another process holds "
        "(`neuron-ls`)",
        SAMPLES_ISSUES + "44",
    ),
    Cause(
        "topology",
        (r"Unsupported topology\. Supported number of Neuron Cores is",),
        "so many cores cannot work together on this instance",
        "on trn1: 1, 2, 8, 16, or a multiple of 32",
        "https://github.com/huggingface/optimum-neuron/issues/619",
    ),
    Cause(
        "execution-timeout",
        (
            r"status=5 message=\"?Timeout Exceeded",
            r"(inference|execution) timeout \(\d+ ms\) on",
        ),
        "a graph did not finish in the runtime's time; often another rank is not there or still compiles",
        "look for the first rank that failed; if all run, NEURON_RT_EXEC_TIMEOUT raises the limit (seconds)",
        SDK_ISSUES + "1028",
    ),
    # Versions
    Cause(
        "torch-mismatch",
        (
            r"(_XLAC\.\S{1,100}|libtorchneuron\.so|libneuronxla\S{0,100}): undefined symbol",
            r"Unknown flags? in XLA_FLAGS",
        ),
        "torch, torch_xla and torch-neuronx (or libneuronxla) are not of one release",
        "`neuron-sum doctor` prints the command that installs the row's versions",
        SDK_ISSUES + "1012",
    ),
    Cause(
        "numpy-mismatch",
        (
            r"A module that was compiled using NumPy 1\.x cannot be run in",
            r"module compiled against API version 0x\w+ but this version of numpy is",
            r"module 'numpy' has no attribute 'asscalar'",
            r"RuntimeError: Numpy is not available",
        ),
        "numpy is newer or older than what another package was built with; the compiler needs numpy before 2",
        "`neuron-sum doctor` prints the command that installs the row's numpy",
        RUNTIME_DOCS,
    ),
    Cause(
        "sdk-missing",
        (
            r"No module named '(torch_neuronx|neuronxcc|libneuronxla|neuronx_distributed)'",
            r"RuntimeError: neuronx-cc is not installed",
        ),
        "AWS's Neuron packages are not installed; PyPI has only placeholders of their names",
        "`neuron-sum doctor` prints the command with AWS's own index; or use a Neuron image",
        SDK_DOCS + "setup/index.html",
    ),
    # SageMaker: before anything runs
    Cause(
        "quota",
        (r"ResourceLimitExceeded", r"The account-level service limit '[^']{1,200}' is \d+"),
        "the account may not have so many of these instances; new accounts have 0 of most",
        "Service Quotas, Amazon SageMaker, the limit by the name in the line: request an increase; training, spot "
        "training, endpoint and transform have limits of their own",
        "https://github.com/aws/amazon-sagemaker-examples/issues/307",
    ),
    Cause(
        "capacity",
        (
            r"CapacityError: Unable to provision",
            r"InsufficientInstanceCapacity",
            r"EC2InsufficientCapacityError",
            r"Insufficient capacity error from EC2",
        ),
        "AWS has none of these instances free there now; the account's limit is not the matter",
        "try again later, in another region or availability zone, or on the other size",
        "https://github.com/DIAGNijmegen/rse-grand-challenge/issues/2631",
    ),
    Cause(
        "image-not-found",
        (
            r"Requested image not found",
            r"manifest unknown",
            r"pull access denied for \S+",
            r"CannotPullContainerError",
        ),
        "there is no image of that name and tag, or not in that region and account",
        "`neuron-sum doctor RECIPE --instance NAME --region REGION` prints the name; log in to that registry first",
        "https://github.com/aws/deep-learning-containers/issues/3115",
    ),
    Cause(
        "image-permission",
        (
            r"does not grant ecr:\w+",
            r"does not have \w+ permission for the image",
        ),
        "the job's role, or the repository's policy, does not allow the image to be pulled",
        "give the role ecr:BatchGetImage, ecr:GetDownloadUrlForLayer and ecr:BatchCheckLayerAvailability; an image of "
        "AWS's must be named with the account of the job's region",
        "https://github.com/aws/deep-learning-containers/issues/759",
    ),
    Cause(
        "docker-hub-limit",
        (r"toomanyrequests: You have reached your (unauthenticated )?pull rate limit",),
        "Docker Hub lets an address pull only so often, and a build service's addresses are shared by many",
        "take the base image from public.ecr.aws/docker/library, as `aws image` does for Docker's official images; or "
        "log in to Docker Hub",
        "https://github.com/sparcs-kaist/new-ara-api/pull/172",
    ),
    Cause(
        "architecture",
        (r"exec format error",),
        "the image, or a program in it, is for another processor: mostly built on an ARM machine",
        "docker build --platform linux/amd64 (the Dockerfile of `neuron-sum dockerfile` says so)",
        "https://github.com/aws-samples/aws-lex-conv-faq/issues/8",
    ),
    Cause(
        "s3-denied",
        (
            r"when calling the (HeadObject|GetObject|PutObject|ListObjects\w*|ListBucket|HeadBucket) operation: "
            r"(Forbidden|Access ?Denied)",
            r"AccessDenied.{1,400}?s3:\w+",
        ),
        "the role may not read or write that bucket or object; S3 says so too where the object is not there",
        "check the address first; then s3:GetObject, s3:PutObject and s3:ListBucket for the role, and kms:Decrypt if "
        "the bucket has a key",
        "https://github.com/aws/sagemaker-python-sdk/issues/442",
    ),
    Cause(
        "not-authorized",
        (r"is not authorized to perform: (?!s3:)[\w-]+:\w+",),
        "the caller or the job's role lacks the permission that the line names",
        "add that action for that resource to the role's policy (iam:PassRole belongs to the caller)",
        SAGEMAKER_DOCS + "sagemaker-roles.html",
    ),
    # SageMaker: while it runs
    Cause(
        "spot-interrupted",
        (r"SecondaryStatus\W{1,8}Interrupted", r"managed spot training instances were interrupted"),
        "the spot instance was taken away; SageMaker starts the job again when there is one",
        "nothing, if checkpoints go to S3: the next start restores /opt/ml/checkpoints and --resume goes on from there",
        SAGEMAKER_DOCS + "model-managed-spot-training-status.html",
    ),
    Cause(
        "spot-wait-exceeded",
        (r"MaxWaitTimeExceeded",),
        "the spot job was stopped, for it waited and ran longer than MaxWaitTimeInSeconds",
        "a longer wait, another hour or region, or on demand; a new job with the same checkpoint address goes on",
        SAGEMAKER_DOCS + "model-managed-spot-training-status.html",
    ),
    Cause(
        "run-time-exceeded",
        (r"MaxRuntimeExceeded",),
        "the job was stopped, for it ran longer than MaxRuntimeInSeconds; `Stopped` is not success",
        "a longer limit; a new job with the same checkpoint address goes on from the last checkpoint",
        SAGEMAKER_DOCS + "model-managed-spot-training-status.html",
    ),
    Cause(
        "ping",
        (r"did not pass the ping health check",),
        "the container did not answer GET /ping on port 8080 with 200 in time; this line does not say why",
        "the endpoint's own log does; if it was still loading or compiling, a longer "
        "ContainerStartupHealthCheckTimeoutInSeconds, and graphs that are compiled before they are deployed",
        SDK_ISSUES + "457",
    ),
    Cause(
        "invoke-timeout",
        (r"Your invocation timed out while waiting for a response from container", r"Read timeout on endpoint URL"),
        "the container did not answer in the 60 s that SageMaker gives a request",
        "fewer dialogues a request, smaller buckets, fewer beams; a warm-up at load, for the first call is slow; "
        "serve.deadline_s answers 503 before SageMaker gives up",
        "https://github.com/aws/sagemaker-python-sdk/issues/1119",
    ),
    Cause(
        "djl-worker-start",
        (
            r"ai\.djl\.python\.engine\.PyProcess\.startPythonProcess",
            r"Python process startup time out",
            r"Failed to initialize model: ",
            r"Failed register workflow",
        ),
        "DJL Serving's Python worker did not start, or did not load the model in time; the line does not say which",
        "the worker's own lines before it do; if it only takes long, option.model_loading_timeout (240 s by default)",
        "https://github.com/awslabs/fmbench-orchestrator/issues/28",
    ),
    Cause(
        "disk-full",
        (r"No space left on device",),
        "the disk is full: on SageMaker the volume, or /tmp, which is not on it",
        "a larger VolumeSizeInGB, fewer checkpoints (train.save_total_limit), TMPDIR and the compile cache on it",
        SDK_ISSUES + "579",
    ),
)  # fmt: skip
