"""`python -m neuron_sum`, the form that `torchrun -m neuron_sum train RECIPE` needs."""

from neuron_sum.cli import main

if __name__ == "__main__":
    main()
