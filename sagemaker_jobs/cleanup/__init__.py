"""Cleanup: the kinds of resources, finding them, and deleting them."""
