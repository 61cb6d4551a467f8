"""Evaluation: predictions of any system, ROUGE with intervals, comparison side by side, and the HTML report."""
