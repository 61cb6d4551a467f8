"""Ahead-of-time compilation of a trained run into an artifact."""
