"""Evaluation: linear probes, low-data classification, hyperparameter studies and scaling laws."""
