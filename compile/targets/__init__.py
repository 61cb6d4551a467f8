"""Compile targets: the CPU and Neuron devices."""
