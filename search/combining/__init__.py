"""From the trials of one or more searches to one distribution and a preset."""
