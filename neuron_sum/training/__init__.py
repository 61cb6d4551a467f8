"""Training: one linear recipe (train.py), and one file per backend behind the Protocol in base.py."""
