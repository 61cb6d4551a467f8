"""The commands of the `aws` group."""
