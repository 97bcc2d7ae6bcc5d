"""Drawing with a trained model: pictures from nothing, completions, and where a picture surprises the model.

Run: python examples/sample.py     # writes to sample_output/

Needs: pip install "keras_igpt[jax,data,plot]"
Measured: the 16 pictures surprise the model by 2.78 nats per token (pictures of CIFAR-10 by 2.84); 29 s of processor
time on JAX, x86-64, most of it compiling.
"""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

from PIL import Image

import keras_igpt as igpt
from keras_igpt import plotting

MODEL = "igpt_cifar10_16x16"  # comes with the package
OUTPUT = Path("sample_output")
PICTURES: tuple[str, ...] = ()  # your own, of any size; without, drawn pictures are completed
DRAWING = {"temperature": 1.0, "top_p": 0.98, "seed": 0}


def main() -> float:
    """Draws; returns the mean surprise of what was drawn, in nats per token."""
    # Or keras.saving.load_model("igpt.keras"), igpt.load_huggingface_checkpoint(folder), igpt.load_openai_checkpoint.
    lm = igpt.ImageGPTCausalLM.from_preset(MODEL)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    drawn = lm.generate(num_images=16, **DRAWING)  # uint8 (16, 16, 16, 3)
    plotting.plot_grid(drawn).savefig(OUTPUT / "samples.png")
    plotting.save_animation(drawn[:8], OUTPUT / "samples.gif")

    pictures: list[Any] = [Image.open(path) for path in PICTURES] or list(drawn[:4])
    keep = lm.backbone.image_size // 2
    completions = lm.complete(pictures, keep_rows=keep, num_samples=5, **DRAWING)
    plotting.plot_completions(pictures, completions, keep_rows=keep).savefig(OUTPUT / "completions.png")

    scores = lm.score(drawn, per_pixel=True)
    print(scores)
    plotting.plot_surprise(drawn[:8], scores.surprise[:8]).savefig(OUTPUT / "surprise.png")

    # Where the heads in the middle of the network look when they predict the middle of the picture.
    maps = igpt.attention_maps(lm, drawn[:1], layer=lm.backbone.num_layers // 2)
    plotting.plot_attention(drawn[0], maps[0], pixel=(keep, keep)).savefig(OUTPUT / "attention.png")
    return float(scores.nats_per_token.mean())


if __name__ == "__main__":
    main()
