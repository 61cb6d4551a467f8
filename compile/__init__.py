"""Ahead-of-time compile: a trained run in, an artifact out."""
