"""The AWS account: calls, errors, names, policies, logs and the ledger."""
