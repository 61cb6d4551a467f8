"""Preflight: the operators, memory and time that graphs need on Neuron devices, without a Neuron compiler."""
