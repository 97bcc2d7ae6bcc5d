"""Compiled programs kept on disk, so that the next process does not compile them again."""

from __future__ import annotations

import os
from pathlib import Path

import keras


def enable_compilation_cache(folder: str | os.PathLike[str]) -> None:
    """Has JAX keep what it compiles in a folder, and take from there what it would compile again.

    The first step of a model's training takes seconds to minutes to compile, in each process and each trial of a search
    anew. From the folder it is loaded. Nothing else changes: a program is found by its code, shapes, versions, flags
    and device, so another model or batch size is compiled, and kept, beside the others. Nothing is ever deleted; the
    folder may be, at any time.

    Call it before the first step. Processes may share the folder, of one kind of machine: programs for CPU fit the
    processor they were made on. On CPU, XLA logs each loaded program as one for another machine, over features of its
    own that are no processor's; `TF_CPP_MIN_LOG_LEVEL=3`, set before Python starts, silences it.

    Args:
        folder: path, created where it does not exist.

    Raises:
        ValueError: if the backend is not JAX. PyTorch runs eagerly and compiles nothing. TensorFlow reads a flag of its
            own before it starts, `TF_XLA_FLAGS=--tf_xla_persistent_cache_directory=FOLDER`, and heeds it where it
            compiles: by default on accelerators only.

    Example:
    ```python
    enable_compilation_cache("~/.cache/keras_igpt")
    lm.fit(token_ids, batch_size=128)
    ```

    Reference:
        [JAX persistent compilation cache](https://docs.jax.dev/en/latest/persistent_compilation_cache.html)
    """
    backend = keras.backend.backend()
    if backend != "jax":
        other = {
            "tensorflow": "TensorFlow has TF_XLA_FLAGS=--tf_xla_persistent_cache_directory=FOLDER",
            "torch": "PyTorch runs eagerly and compiles nothing",
        }
        raise ValueError(f"`enable_compilation_cache` needs the JAX backend: {other[backend]}. Received: {backend}")
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    path = Path(folder).expanduser().resolve()
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    # By default JAX keeps only what took it more than a second, and building a model is many smaller programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # A folder that was in use before would stay so.
    compilation_cache.reset_cache()
