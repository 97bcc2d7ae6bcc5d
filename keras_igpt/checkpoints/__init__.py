"""Weights from and to the formats of others, other palettes, and models for deployment."""
