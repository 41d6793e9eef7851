"""Reports of a study: an HTML page with figures and tables, and a CSV file."""
