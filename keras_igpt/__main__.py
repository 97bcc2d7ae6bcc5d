"""`python -m keras_igpt`."""

from keras_igpt.commands.main import main

main()
