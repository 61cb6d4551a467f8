"""Diagnosis: this machine, a recipe on an instance type, and the known causes of failures in logs."""
