"""Training: one linear procedure (train.py), and one backend per folder behind the Protocol in base.py."""
