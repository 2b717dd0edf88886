"""Head activations: captured, packed, kept."""
