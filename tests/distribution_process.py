"""One of the processes of test_distribution.py, which train, evaluate and save models together on JAX.

python distribution_process.py ADDRESS COUNT RANK FOLDER
"""

import sys

import keras
import numpy as np
from distribution_jax import ARCHITECTURE, EXAMPLES, make

import keras_igpt as igpt
from keras_igpt.backend.processes import data_shard
from keras_igpt.training.distribution import make_distribution, save_model

address, count, rank, folder = sys.argv[1:]
keras.distribution.initialize(address, int(count), int(rank))
for model_devices in (1, 4):
    distribution = make_distribution(ARCHITECTURE, model_devices)
    keras.distribution.set_distribution(distribution)
    shard = data_shard(distribution)
    print(f"{model_devices} devices a model, shard {shard[0]} of {shard[1]}", flush=True)
    batches = igpt.TrainingBatches(EXAMPLES, None, batch_size=16, seed=1, shard=shard)
    held_out = igpt.EvaluationBatches(EXAMPLES, None, batch_size=16, shard=shard)
    model = make("masked")
    history = model.fit(batches, epochs=2, steps_per_epoch=2, validation_data=held_out, verbose=0).history
    evaluated = model.evaluate(held_out, verbose=0, return_dict=True)
    save_model(model, f"{folder}/{model_devices}.keras")
    try:
        model.predict(held_out, verbose=0)
    except ValueError as error:
        print(error)
    if rank == "0":
        np.save(f"{folder}/{model_devices}.npy", np.concatenate([*history.values(), [*evaluated.values()]]))
