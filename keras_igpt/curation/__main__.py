"""`python -m keras_igpt.curation`."""

from keras_igpt.curation.command import main

if __name__ == "__main__":
    main()
