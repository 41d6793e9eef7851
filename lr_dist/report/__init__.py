"""Figures, tables and one self-contained page from a result file."""
