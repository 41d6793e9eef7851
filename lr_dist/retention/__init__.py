"""What is left of earlier knowledge after a fine-tune, layer by layer."""
