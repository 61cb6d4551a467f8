"""Training and compile jobs: requests, inputs, wheels, and the container's entry script."""
