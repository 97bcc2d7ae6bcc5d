"""How to train: recipes, accumulated gradients, exact resume, several devices."""
