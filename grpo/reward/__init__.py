"""Grading text: extraction, equivalence, reward functions, worker processes."""
