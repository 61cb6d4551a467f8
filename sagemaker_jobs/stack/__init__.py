"""The CloudFormation stack that an account has once per region."""
