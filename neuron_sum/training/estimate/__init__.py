"""Estimates of a training run: memory, steps, disk and time."""
