"""Recipes: the schema, loading, and the bundled recipe files."""
