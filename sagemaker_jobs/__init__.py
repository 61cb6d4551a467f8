"""The AWS side of neuron-sum: prices, image, jobs, endpoint, batch, inventory and cleanup, and a local rehearsal."""
