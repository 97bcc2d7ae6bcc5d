"""The transformer: sizes, layers, weights, and what it all costs."""
