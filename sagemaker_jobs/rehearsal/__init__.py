"""Rehearsal: an endpoint's whole life on this machine."""
