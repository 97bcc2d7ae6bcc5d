"""Image GPT in NumPy, written from the paper's equations, in float64; shares no code with the library."""

import numpy as np


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def normalize(x, weights, kind):
    if kind == "rms_norm":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weights["gain"]
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * weights["gain"] + weights["bias"]


def project(equation, x, projection):
    """A projection of inputs and its bias, where it has one, whose axes are the output's after the sequence's."""
    kernel, bias = projection
    return np.einsum(equation, x, kernel) + (0 if bias is None else bias)


def forward(weights, token_ids, causal, kind, position_mask=None):
    """Returns normed states n^0 … n^L, residual states h^0 … h^L (each (B, T, D)) and logits (B, T, V)."""
    batch, length = token_ids.shape
    content = weights["token"][token_ids]
    if causal:
        start = np.broadcast_to(weights["start"], (batch, 1, content.shape[-1]))
        content = np.concatenate([start, content[:, :-1]], axis=1)
    if position_mask is not None:
        content = content * (1 - position_mask[..., None])
    h = content + weights["position"]
    residual, normed = [h], []
    for block in weights["blocks"]:
        n = normalize(h, block["attention_norm"], kind)
        normed.append(n)
        projected = project("btd,dcnh->btcnh", n, block["query_key_value"])
        heads = []
        for head in range(projected.shape[3]):
            q, k, v = (projected[:, :, part, head] for part in range(3))  # (B, T, H)
            scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
            if causal:
                scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
            heads.append(softmax(scores) @ v)
        a = h + project("btnh,nhd->btd", np.stack(heads, axis=2), block["output"])
        m = project("btd,de->bte", normalize(a, block["feed_forward_norm"], kind), block["expansion"])
        h = a + project("bte,ed->btd", m / (1 + np.exp(-1.702 * m)), block["contraction"])
        residual.append(h)
    normed.append(normalize(h, weights["final_norm"], kind))
    return normed, residual, normed[-1] @ weights["head"]


def read_weights(model):
    """Reads a model's weights by attribute into plain float64 arrays."""

    def array(variable):
        return np.asarray(variable.numpy() if hasattr(variable, "numpy") else variable, np.float64)

    def norm(layer):
        parts = {"gain": array(layer.gain)}
        return parts if layer.bias is None else {**parts, "bias": array(layer.bias)}

    def projection(layer):
        return array(layer.kernel), None if layer.bias is None else array(layer.bias)

    backbone = model.backbone
    embedding = backbone.pixel_embedding
    return {
        "token": array(embedding.token_embedding.embeddings),
        "position": array(embedding.position_embedding),
        "start": array(embedding.start_vector) if backbone.attention == "causal" else None,
        "blocks": [
            {
                "attention_norm": norm(block.attention_norm),
                "query_key_value": projection(block.attention.query_key_value),
                "output": projection(block.attention.output_projection),
                "feed_forward_norm": norm(block.feed_forward_norm),
                "expansion": projection(block.feed_forward.expansion),
                "contraction": projection(block.feed_forward.contraction),
            }
            for block in backbone.blocks
        ],
        "final_norm": norm(backbone.final_norm),
        "head": array(model.pixel_head.kernel),
    }
