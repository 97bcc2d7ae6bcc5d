"""What an installed package must be able to do, outside its clone: `python smoke.py`, run by `make package`."""

import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

import keras_igpt as igpt


def main() -> None:
    installed = Path(igpt.__file__).resolve()
    assert "site-packages" in installed.parts, f"the clone was imported and not what is installed: {installed}"
    assert (installed.parent / "py.typed").exists()

    trained = igpt.ImageGPTCausalLM.from_preset("igpt_cifar10_8x8")
    images = trained.generate(num_images=2, seed=0)
    assert images.shape == (2, 8, 8, 3)
    assert np.isfinite(trained.score(images).nats_per_token).all()

    trained.compile(**igpt.pretraining_recipe("igpt_nano", objective="ar", steps=2))
    history = trained.fit(trained.palette.encode(images), batch_size=2, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        trained.save(path)
        opened = keras.saving.load_model(path)
        np.testing.assert_array_equal(opened.palette.centroids, trained.palette.centroids)
    print(f"{igpt.__name__} {igpt.__version__} on {keras.backend.backend()}, Python {sys.version.split()[0]}: works")


if __name__ == "__main__":
    main()
