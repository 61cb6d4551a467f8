"""Batch transforms: inputs, requests and results."""
