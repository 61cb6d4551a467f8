"""Creating resources: calls in order, roles, the bucket, uploads, schedules and quotas."""
