"""`neuron-sum aws …`: the command group."""

import typer

from sagemaker_jobs.commands.batch import batch
from sagemaker_jobs.commands.captured import captured
from sagemaker_jobs.commands.down import down
from sagemaker_jobs.commands.endpoints import deploy, extend
from sagemaker_jobs.commands.iam import iam
from sagemaker_jobs.commands.image import image
from sagemaker_jobs.commands.invoke import invoke
from sagemaker_jobs.commands.jobs import compile_run, train
from sagemaker_jobs.commands.models import models
from sagemaker_jobs.commands.plan import plan
from sagemaker_jobs.commands.receipt import receipt
from sagemaker_jobs.commands.register import register
from sagemaker_jobs.commands.rehearse import rehearse
from sagemaker_jobs.commands.setup import setup
from sagemaker_jobs.commands.status import status

aws = typer.Typer(no_args_is_help=True, help="SageMaker: cost estimates, jobs, endpoints and cleanup.")

aws.command()(setup)
aws.command()(plan)
aws.command()(rehearse)
aws.command()(receipt)
aws.command()(image)
aws.command()(train)
aws.command("compile")(compile_run)
aws.command()(deploy)
aws.command()(invoke)
aws.command()(extend)
aws.command()(models)
aws.command()(captured)
aws.command()(batch)
aws.command()(register)
aws.command()(status)
aws.command()(down)
aws.command()(iam)
