"""What a study searches, how its trials are run and scored, and reading them back."""
