"""Recipes: the schema, the loader, and the bundled recipe files."""
