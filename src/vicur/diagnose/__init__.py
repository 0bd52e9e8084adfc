"""`vicur diagnose`: the papers' analyses, each as numbers (JSON), a figure and a table.

A module is one analysis: its settings, a function that computes a `Finding`, and the figure.
"""
