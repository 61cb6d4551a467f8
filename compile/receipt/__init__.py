"""One file with the results of a machine with a Neuron device."""
