"""The torch training backend, built on the transformers Trainer."""
