"""What the features are good for: probes, few labels, and the paper's way to a result."""
