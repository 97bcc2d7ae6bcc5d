"""Compiled programs over rows of any number: drawing, filling and scoring pictures."""
