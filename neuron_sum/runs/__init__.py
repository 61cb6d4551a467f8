"""Run folders: the files of a training run, and what is made from them."""
