"""The serving image: its build and its registry."""
