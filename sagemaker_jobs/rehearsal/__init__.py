"""Rehearsal of an AWS run on this machine."""
