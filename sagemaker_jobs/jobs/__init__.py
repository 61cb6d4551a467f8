"""Training and compile jobs: requests, inputs, wheels, and the entry script of the container."""
