"""What is checked before a model's weights are read, and after."""
