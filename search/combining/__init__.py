"""Combine the trials of one or more searches into one distribution and a preset."""
