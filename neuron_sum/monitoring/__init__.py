"""Monitoring: captured requests and answers of an endpoint, compared with the training data."""
