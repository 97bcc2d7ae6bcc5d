"""The models that are trained: autoregressive, BERT, and classification beside either."""
