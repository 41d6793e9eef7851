"""Trace what the models of a comparison predict and forget back to the examples they learned."""
