"""Run folders: the files of a training run, loading its model, merging it, and its model card."""
