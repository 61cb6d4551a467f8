"""Ahead-of-time compile: a trained run in, an artifact out. Not built yet: see the README."""
