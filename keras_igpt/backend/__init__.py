"""The one place that asks which backend runs, or touches what Keras keeps private."""
