"""What talks to AWS: the price of a run, its image, jobs and endpoint, what is there, its removal; and a rehearsal."""
