"""The command line: `keras-igpt COMMAND`, or `python -m keras_igpt COMMAND`. One file a command, thin over the API."""
