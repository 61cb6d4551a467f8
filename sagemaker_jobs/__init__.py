"""What talks to AWS: cost plan, training and compile jobs, endpoints, clean-up. Not built yet: see the README."""
