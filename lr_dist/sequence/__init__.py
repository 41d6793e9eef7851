"""Learn tasks one after the other, and measure what is forgotten."""
