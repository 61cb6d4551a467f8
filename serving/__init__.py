"""Serving: the DJL Serving handler, its server and image, packaging, and the client."""
