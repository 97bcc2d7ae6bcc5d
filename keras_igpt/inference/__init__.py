"""Compiled programs that draw, fill and score pictures."""
