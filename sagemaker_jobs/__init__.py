"""What talks to AWS: the price of a run before it starts, training jobs, what is there, and its removal."""
