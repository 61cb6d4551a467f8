"""Entry point of `python -m neuron_sum`, which `torchrun -m neuron_sum train RECIPE` requires."""

from neuron_sum.cli import main

if __name__ == "__main__":
    main()
