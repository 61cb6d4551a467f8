"""Dialogues and their summaries: sources, checks, and conversion to tensors."""
