"""The paper's models in plain numpy: float64, one image, one head and one place at a time."""

import jax
import numpy as np
from scipy.special import erf


def in_float64(params):
    return jax.tree.map(lambda array: np.asarray(array, np.float64), params)


# The Vision Transformer: equations 1 to 8.


def norm(x, p, eps):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * p["scale"] + p.get("bias", 0)


def gelu(x, kind):
    if kind == "erf":
        return x / 2 * (1 + erf(x / np.sqrt(2)))
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def msa(x, y, p, eps):
    """Equations 5 to 8: queries from x, keys and values from y."""
    heads = []
    for i in range(p["query"]["kernel"].shape[1]):
        q = x @ p["query"]["kernel"][:, i] + p["query"]["bias"][i]
        k = y @ p["key"]["kernel"][:, i] + p["key"]["bias"][i]
        v = y @ p["value"]["kernel"][:, i] + p["value"]["bias"][i]
        if "query_ln" in p:
            q, k = norm(q, p["query_ln"], eps), norm(k, p["key_ln"], eps)
        logits = q @ k.T / np.sqrt(q.shape[-1])
        if "relative" in p:
            logits += relative_logits(q, p["relative"]["relative_embedding"][:, i])
        A = np.exp(logits)
        A /= A.sum(-1, keepdims=True)
        heads.append(A @ v)
    U_msa = p["out"]["kernel"].reshape(-1, x.shape[-1])
    return np.concatenate(heads, axis=-1) @ U_msa + p["out"]["bias"]


def relative_logits(q, keys):
    """Appendix D.4: query q meets the key of the offset p_q - p_k; offset 0 in the middle."""
    T, d = q.shape
    logits = np.zeros((T, T))
    for p_q in range(T):
        for p_k in range(T):
            logits[p_q, p_k] = q[p_q] @ keys[p_q - p_k + T - 1] / np.sqrt(d)
    return logits


def mlp(x, p, kind):
    x = gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], kind)
    return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def sincos(rows, columns, D):
    """The embedding of each place, row by row: sines and cosines of x, then of y."""
    omega = np.array([1e4 ** (-i / (D / 4 - 1)) for i in range(D // 4)])
    waves = lambda at: [*np.sin(at * omega), *np.cos(at * omega)]  # noqa: E731
    return np.array([waves(x) + waves(y) for y in range(rows) for x in range(columns)])


def two_halves(x, y):
    """D/2 numbers of the column before D/2 numbers of the row."""
    return np.array([[*x[column], *y[row]] for row in range(len(y)) for column in range(len(x))])


def add_positions(z, p, kind, grid, num_cls):
    """Equation 1's E_pos, onto the class token and the patches; registers have none."""
    z, D, N = z.copy(), z.shape[-1], grid[0] * grid[1]
    if kind == "learned":
        E_pos = p["pos_embedding"][0]
        z[:num_cls] += E_pos[:num_cls]
        z[-N:] += E_pos[num_cls:]
    elif kind == "learned_2d":
        z[-N:] += two_halves(p["x_embedding"][0], p["y_embedding"][0])
    elif kind == "sincos":
        z[-N:] += sincos(*grid, D)
    return z


def encoder(p, z, place, gelu, eps, pos_embed_at):
    z = place(z, "posembed_input")
    for i in range(sum(name.startswith("encoderblock") for name in p)):
        block = p[f"encoderblock_{i}"]
        if i > 0 and pos_embed_at != "stem":
            z = place(z, "posembed_input" if pos_embed_at == "shared" else f"posembed_{i}")
        y = norm(z, block["LayerNorm_0"], eps)
        y = msa(y, y, block["MultiHeadDotProductAttention_0"], eps)
        z = z + y * (block["LayerScale_0"]["scale"] if "LayerScale_0" in block else 1)  # 2.
        y = mlp(norm(z, block["LayerNorm_1"], eps), block["MlpBlock_0"], gelu)
        z = z + y * (block["LayerScale_1"]["scale"] if "LayerScale_1" in block else 1)  # 3.
    return norm(z, p["encoder_norm"], eps)


def vit(params, images, **options):
    """Images B H W C -> logits B K, or features where the tree holds no head.

    What the tree of parameters can tell is taken from it; the options tell the rest.
    """
    return np.stack([_vit(in_float64(params), np.float64(image), **options) for image in images])


def _vit(
    params, image, *, pool="token", gelu="tanh", eps=1e-6, pos_embed="learned", pos_embed_at="stem"
):
    P, D = params["embedding"]["kernel"].shape[0], params["embedding"]["kernel"].shape[-1]
    grid = image.shape[0] // P, image.shape[1] // P
    E = params["embedding"]["kernel"].reshape(-1, D)
    z = [
        image[top : top + P, left : left + P].reshape(-1) @ E
        for top in range(0, image.shape[0], P)
        for left in range(0, image.shape[1], P)
    ]
    z = np.stack(z) + params["embedding"]["bias"]
    N, num_cls = len(z), int("cls" in params)
    first = [params[name][0] for name in ("cls", "registers") if name in params]
    z = np.concatenate([*first, z])  # Equation 1.
    p = params["Transformer"]
    place = lambda z, name: add_positions(z, p.get(name), pos_embed, grid, num_cls)  # noqa: E731
    z = encoder(p, z, place, gelu, eps, pos_embed_at)
    if pool == "map":
        head = params["MAPHead_0"]
        y = msa(head["probe"][0], z, head["MultiHeadDotProductAttention_0"], eps)
        y = (y + mlp(norm(y, head["LayerNorm_0"], eps), head["MlpBlock_0"], gelu))[0]
    else:
        cls, mean = z[0], z[-N:].mean(0)  # Equation 4; appendix D.3.
        y = {"token": cls, "gap": mean, "token_gap": np.concatenate([cls, mean])}[pool]
    if "pre_logits" in params:
        y = np.tanh(y @ params["pre_logits"]["kernel"] + params["pre_logits"]["bias"])
    return y @ params["head"]["kernel"] + params["head"]["bias"] if "head" in params else y


# The two ResNets. One image H W C.

EVEN, SAME = "even", "same"


def pads_of(length, window, stride, padding):
    if padding == EVEN:
        return window // 2, window // 2
    places = -(-length // stride)  # TensorFlow's SAME: the odd one goes to the end.
    total = max((places - 1) * stride + window - length, 0)
    return total // 2, total - total // 2


def windows(x, size, stride, padding, fill):
    """Row, column and window of every place."""
    pads = [pads_of(length, size, stride, padding) for length in x.shape[:2]]
    x = np.pad(x, (*pads, (0, 0)), constant_values=fill)
    for row, top in enumerate(range(0, x.shape[0] - size + 1, stride)):
        for column, left in enumerate(range(0, x.shape[1] - size + 1, stride)):
            yield row, column, x[top : top + size, left : left + size]


def each_window(x, size, stride, padding, fill, function):
    found = {(r, c): function(w) for r, c, w in windows(x, size, stride, padding, fill)}
    rows, columns = max(found)
    return np.array([[found[r, c] for c in range(columns + 1)] for r in range(rows + 1)])


def convolve(x, kernel, stride, padding):
    size, F = kernel.shape[0], kernel.shape[-1]
    flat = kernel.reshape(-1, F)
    return each_window(x, size, stride, padding, 0, lambda w: w.reshape(-1) @ flat)


def pooled(x, padding, fill):
    return each_window(x, 3, 2, padding, fill, lambda w: w.max((0, 1)))


def max_pool(x, padding):
    return pooled(x, padding, 0 if padding == EVEN else -np.inf)


def standardise(kernel, padding):
    """The hybrid's ResNet adds 1e-5 to the deviation, BiT's 1e-10 to the variance."""
    axes = (0, 1, 2)
    if padding == SAME:
        return (kernel - kernel.mean(axes)) / (kernel.std(axes) + 1e-5)
    return (kernel - kernel.mean(axes)) / np.sqrt(kernel.var(axes) + 1e-10)


def std_conv(x, p, stride, padding):
    return convolve(x, standardise(p["kernel"], padding), stride, padding)


def group_norm(x, p, eps):
    groups = []
    for group in np.split(x, 32, axis=-1):
        groups.append((group - group.mean()) / np.sqrt(group.var() + eps))
    return np.concatenate(groups, axis=-1) * p["scale"] + p["bias"]


def relu(x):
    return np.where(x > 0, x, 0)


def hybrid_unit(x, p, stride):
    residual = x
    if "conv_proj" in p:
        residual = group_norm(std_conv(x, p["conv_proj"], stride, SAME), p["gn_proj"], 1e-6)
    y = relu(group_norm(std_conv(x, p["conv1"], 1, SAME), p["gn1"], 1e-6))
    y = relu(group_norm(std_conv(y, p["conv2"], stride, SAME), p["gn2"], 1e-6))
    y = group_norm(std_conv(y, p["conv3"], 1, SAME), p["gn3"], 1e-6)
    return relu(residual + y)


def bit_unit(x, p, stride):
    y = relu(group_norm(x, p["gn1"], 1e-5))
    residual = std_conv(y, p["conv_proj"], stride, EVEN) if "conv_proj" in p else x
    y = std_conv(y, p["conv1"], 1, EVEN)
    y = std_conv(relu(group_norm(y, p["gn2"], 1e-5)), p["conv2"], stride, EVEN)
    return residual + std_conv(relu(group_norm(y, p["gn3"], 1e-5)), p["conv3"], 1, EVEN)


def stages(x, params, unit):
    """Name and feature map of every stage."""
    for b in range(1, 1 + sum(name.startswith("block") for name in params)):
        block = params[f"block{b}"]
        for u in range(1, 1 + len(block)):
            x = unit(x, block[f"unit{u}"], 2 if b > 1 and u == 1 else 1)
        yield f"block{b}", x


def hybrid_resnet(params, images):
    """Images B H W 3 -> the map B h w C of every stage; a hybrid's patches are of the last."""
    params = in_float64(params)
    maps = []
    for image in np.float64(images):
        x = std_conv(image, params["conv_root"], 2, SAME)
        x = max_pool(relu(group_norm(x, params["gn_root"], 1e-6)), SAME)
        maps.append({"pool": x} | dict(stages(x, params, hybrid_unit)))
    return {name: np.stack([each[name] for each in maps]) for name in maps[0]}


def bit_resnet(params, images):
    """Images B H W 3 -> the map of every stage, and the features B C or logits as "answer"."""
    params = in_float64(params)
    maps = []
    for image in np.float64(images):
        x = max_pool(std_conv(image, params["conv_root"], 2, EVEN), EVEN)
        maps.append(dict(stages(x, params, bit_unit)))
        *_, x = maps[-1].values()
        y = relu(group_norm(x, params["gn_final"], 1e-5)).mean((0, 1))
        if "head" in params:
            y = y @ params["head"]["kernel"] + params["head"]["bias"]
        maps[-1]["answer"] = y
    return {name: np.stack([each[name] for each in maps]) for name in maps[0]}
