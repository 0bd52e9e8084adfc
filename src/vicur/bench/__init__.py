"""`vicur bench`: how long models and training steps take, as numbers (JSON), a figure and a table.

A module is one benchmark: its settings, a function that computes a `Finding`, and the figure. What is
compared takes turns, because clocks and temperatures drift.
"""
