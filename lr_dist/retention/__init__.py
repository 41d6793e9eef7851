"""What is left of earlier knowledge: marginal likelihood, drift, influence."""
