"""Dialogues and their summaries: where they come from, what is checked, and how they become tensors."""
