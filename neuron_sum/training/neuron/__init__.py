"""The Neuron training backend, built on optimum-neuron."""
