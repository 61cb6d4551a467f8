"""Evaluation: predictions of any system, ROUGE with intervals, comparison of systems, and the HTML report."""
