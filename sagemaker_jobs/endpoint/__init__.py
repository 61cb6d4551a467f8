"""Endpoints: sources, requests, launch and lifecycle."""
