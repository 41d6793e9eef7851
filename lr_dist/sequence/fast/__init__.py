"""What makes a run cheaper and changes no score but for rounding and the draws of dropout."""
