"""A page to play with a language model in the browser: `keras-igpt demo`."""
