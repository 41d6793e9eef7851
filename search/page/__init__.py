"""What people see of a study: one HTML page, its figures and tables, and a CSV file."""
