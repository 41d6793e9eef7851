"""Configure a study, run and score its trials, and read them back."""
