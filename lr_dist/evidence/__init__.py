"""Evidence: every arm is tuned on some task sequences, fixed, and compared on others over several seeds."""
