"""`neuron-sum aws …`: the command group."""

from neuron_sum.command_group import CommandGroup

aws = CommandGroup(
    "SageMaker: cost estimates, jobs, endpoints and cleanup.",
    {
        "setup": "sagemaker_jobs.commands.setup:setup",
        "plan": "sagemaker_jobs.commands.plan:plan",
        "rehearse": "sagemaker_jobs.commands.rehearse:rehearse",
        "receipt": "sagemaker_jobs.commands.receipt:receipt",
        "image": "sagemaker_jobs.commands.image:image",
        "train": "sagemaker_jobs.commands.jobs:train",
        "compile": "sagemaker_jobs.commands.jobs:compile_run",
        "deploy": "sagemaker_jobs.commands.endpoints:deploy",
        "invoke": "sagemaker_jobs.commands.invoke:invoke",
        "extend": "sagemaker_jobs.commands.endpoints:extend",
        "models": "sagemaker_jobs.commands.models:models",
        "captured": "sagemaker_jobs.commands.captured:captured",
        "batch": "sagemaker_jobs.commands.batch:batch",
        "register": "sagemaker_jobs.commands.register:register",
        "status": "sagemaker_jobs.commands.status:status",
        "down": "sagemaker_jobs.commands.down:down",
        "iam": "sagemaker_jobs.commands.iam:iam",
    },
)
