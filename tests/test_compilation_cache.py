import json
import os
import subprocess
import sys

import keras
import pytest

from keras_igpt.compilation_cache import enable_compilation_cache

jax_only = pytest.mark.skipif(keras.backend.backend() != "jax", reason="the other backends have no such cache")

TRAIN = """
import json, os, sys
from collections import Counter
import jax, keras, numpy
import keras_igpt as igpt
from keras_igpt.compilation_cache import enable_compilation_cache

events = Counter()
jax.monitoring.register_event_listener(lambda event, **details: events.update([event.split("/")[-1]]))
first, second = sys.argv[1:]
enable_compilation_cache(first)
keras.utils.set_random_seed(0)
backbone = igpt.ImageGPTBackbone(vocabulary_size=4, image_size=2, num_layers=1, num_heads=1, hidden_dim=4)
lm = igpt.ImageGPTCausalLM(backbone)
lm.compile(**igpt.pretraining_recipe("igpt_nano", "ar", steps=9))
history = lm.fit(numpy.zeros((8, 4), "int32"), batch_size=2, verbose=0)
result = {"hits": events["cache_hits"], "misses": events["cache_misses"], "loss": history.history["loss"]}
enable_compilation_cache(second)
jax.jit(lambda x: 2 * x)(1.0)
print(json.dumps(result))
"""


@jax_only
def test_a_second_process_compiles_nothing_and_trains_the_same(tmp_path):
    folders = [str(tmp_path / "new" / "first"), str(tmp_path / "second")]
    results = []
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, "-c", TRAIN, *folders], capture_output=True, text=True, env=os.environ, check=False
        )
        assert result.returncode == 0, result.stderr
        results.append(json.loads(result.stdout.splitlines()[-1]))
    first, second = results
    assert first["hits"] == 0
    assert first["misses"] > 0
    assert second == {"hits": first["misses"], "misses": 0, "loss": first["loss"]}
    assert any(name.startswith("jit_train_step") for name in os.listdir(folders[0]))
    # The folder can be changed in mid-process.
    assert os.listdir(folders[1])


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX has the cache")
def test_other_backends_say_what_they_have_instead(tmp_path):
    instead = {"tensorflow": "TF_XLA_FLAGS", "torch": "compiles nothing"}[keras.backend.backend()]
    with pytest.raises(ValueError, match=instead):
        enable_compilation_cache(tmp_path)
