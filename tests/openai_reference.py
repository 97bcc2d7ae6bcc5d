"""The released model in NumPy, from its variables by their names, and its checkpoint files; float64, nothing shared."""

import numpy as np


def random_variables(colors=16, positions=16, layers=2, heads=2, width=32, bert=False, seed=0):
    """Variables with the released code's names and shapes, all of them random."""
    random = np.random.default_rng(seed)
    shapes = {"wpe": (positions, width), "wte": (colors, width), "wtet": (colors, width), "ln_f/g": (width,)}
    if not bert:
        shapes["sos"] = (width,)
    for layer in range(layers):
        shapes |= {f"h{layer}/attn/{letter}_proj": (heads, width // heads, width) for letter in "qkvc"}
        shapes |= {f"h{layer}/ln_{number}/g": (width,) for number in (1, 2)}
        shapes |= {f"h{layer}/mlp/c_fc/w": (width, 4 * width), f"h{layer}/mlp/c_proj/w": (4 * width, width)}
    return {
        f"model/{name}": (name.endswith("/g") + 0.2 * random.standard_normal(shape)).astype("float32")
        for name, shape in shapes.items()
    }


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def generative_loss(variables, pixels, mask=None):
    """The mean loss in nats a token: of all tokens, or of the masked ones of each picture where there is no `sos`."""
    variables = {name.removeprefix("model/"): array.astype("float64") for name, array in variables.items()}
    count, length = pixels.shape

    def norm(x, gain):
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5) * gain

    h = variables["wte"][pixels]
    if mask is None:
        h = np.concatenate([np.tile(variables["sos"], (count, 1, 1)), h[:, :-1]], axis=1)
    else:
        h = np.where(mask[..., None], 0.0, h)
    h = h + variables["wpe"][:length]
    for layer in range(sum(name.endswith("q_proj") for name in variables)):
        block = {name.removeprefix(f"h{layer}/"): array for name, array in variables.items()}
        n = norm(h, block["ln_1/g"])
        q, k, v = (np.einsum("bsf,hef->bhse", n, block[f"attn/{letter}_proj"]) for letter in "qkv")
        w = np.einsum("bhse,bhte->bhst", q, k) / np.sqrt(q.shape[-1])
        if mask is None:
            seen = np.tri(length)
            w = w * seen - 1e10 * (1 - seen)
        a = np.einsum("bhst,bhte->bhse", np.exp(log_softmax(w)), v)
        h = h + np.einsum("bhse,hef->bsf", a, block["attn/c_proj"])
        m = norm(h, block["ln_2/g"]) @ block["mlp/c_fc/w"]
        h = h + (m / (1 + np.exp(-1.702 * m))) @ block["mlp/c_proj/w"]
    scores = log_softmax(norm(h, variables["ln_f/g"]) @ variables["wtet"].T)
    losses = -np.take_along_axis(scores, pixels[..., None], axis=-1)[..., 0]
    if mask is None:
        return losses.mean()
    return ((losses * mask).sum(1) / mask.sum(1)).mean()


def write_checkpoint(prefix, variables, shards=3):
    """Writes what TensorFlow 1's sharded saver writes, but for the graph: an index and data files."""
    import tensorflow as tf

    parts = []
    for shard in range(shards):
        names = sorted(variables)[shard::shards]
        parts.append(f"{prefix}_temp/part-{shard:05d}-of-{shards:05d}")
        tf.raw_ops.SaveV2(
            prefix=parts[-1],
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=[variables[name] for name in names],
        )
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(prefix), delete_old_dirs=True)
