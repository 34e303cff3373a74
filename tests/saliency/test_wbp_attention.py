"""Attention with its scores frozen, against NumPy: what reaches the value is ``A^T W`` through its projections.

Keras scales the scores by ``1 / sqrt(key_dim)`` in float32, which is exact for a size of 4.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("float64")
L, ops = keras.layers, keras.ops
BATCH, QUERIES, KEYS = 2, 3, 4
QUERY, VALUE, KEY = (QUERIES, 6), (KEYS, 6), (KEYS, 6)  # grouped attention takes them of one size only


def softmax(scores, axes=(-1,)):
    powers = np.exp(scores - scores.max(axis=axes, keepdims=True))
    return powers / powers.sum(axis=axes, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def weights_of(layer, name):
    """Kernel and bias of the projection of the query, key, value, output or gate."""
    return [weight.numpy() for weight in getattr(layer, f"_{name}_dense").weights]


def walk(frozen, build, *values):
    """Weights at every input, offsets, logits and the cotangent in the shape of the outputs."""
    inputs = [keras.Input(value.shape[1:], dtype="float64") for value in values]
    outputs = build(*inputs)
    model = frozen.randomise(keras.Model(inputs, L.Flatten()(outputs)), scale=0.5)
    cotangent = normal(*model(list(values)).shape, seed=9)
    weights, offsets, logits = frozen.walk(model, list(values), cotangent)
    shape = (len(cotangent), *outputs.shape[1:])
    return weights, offsets, logits.reshape(shape), cotangent.reshape(shape)


def multi_head(layer, query, value, key, allowed=None):
    """Scores (N, heads, queries, keys) and the output of multi-head attention over one axis."""
    (q_kernel, q_bias), (k_kernel, k_bias) = weights_of(layer, "query"), weights_of(layer, "key")
    queries = np.einsum("nqd,dhc->nqhc", query, q_kernel) + q_bias
    keys = np.einsum("nkd,dhc->nkhc", key, k_kernel) + k_bias
    repeats = queries.shape[2] // keys.shape[2]
    scores = np.einsum("nqhc,nkhc->nhqk", queries, np.repeat(keys, repeats, axis=2)) / np.sqrt(queries.shape[-1])
    return softmax(scores if allowed is None else np.where(allowed[:, None], scores, -1e30)), repeats


def check_multi_head(frozen, layer, build, values, places, allowed=None, gate=None):
    """`places` tells which of the values is the query, the value and the key."""
    got, offsets, output, cotangent = walk(frozen, build, *values)
    query, value, key = (values[place] for place in places)
    scores, repeats = multi_head(layer, query, value, key, allowed)
    (v_kernel, v_bias), (o_kernel, o_bias) = weights_of(layer, "value"), weights_of(layer, "output")
    v_kernel, v_bias = np.repeat(v_kernel, repeats, axis=1), np.repeat(v_bias, repeats, axis=0)
    gate = np.ones(()) if gate is None else gate(query)

    def attend(projected):
        return np.einsum("nhqk,nkhc->nqhc", scores, projected) * gate

    projected = np.einsum("nkd,dhc->nkhc", value, v_kernel) + v_bias
    expected = np.einsum("nqhc,hco->nqo", attend(projected), o_kernel) + o_bias
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-9)
    to_heads = np.einsum("nqo,hco->nqhc", cotangent, o_kernel) * gate
    to_value = np.einsum("nhqk,nqhc,dhc->nkd", scores, to_heads, v_kernel)
    constants = np.einsum("nqhc,hco->nqo", attend(np.broadcast_to(v_bias, projected.shape)), o_kernel) + o_bias
    for place, weights in enumerate(got):
        wanted = to_value if place == places[1] else np.zeros_like(values[place])
        np.testing.assert_allclose(weights, wanted, rtol=0, atol=1e-9)
    np.testing.assert_allclose(offsets, (cotangent * constants).sum((1, 2)), rtol=0, atol=1e-9)


def inputs(same=False):
    if same:
        return [normal(BATCH, KEYS, 6)]
    return [normal(BATCH, *shape, seed=seed) for seed, shape in enumerate((QUERY, VALUE, KEY))]


CAUSAL = np.broadcast_to(np.tril(np.ones((KEYS, KEYS), bool)), (BATCH, KEYS, KEYS))
MULTI_HEAD = {
    "plain": lambda **options: L.MultiHeadAttention(2, 4, **options),
    "value size": lambda **options: L.MultiHeadAttention(2, 4, value_dim=3, **options),
    "output size": lambda **options: L.MultiHeadAttention(2, 4, output_shape=5, **options),
    "grouped": lambda **options: L.GroupQueryAttention(4, 4, 2, **options),
}


@pytest.mark.parametrize("name", MULTI_HEAD)
def test_multi_head_self_attention(frozen, name):
    layer = MULTI_HEAD[name]()
    check_multi_head(frozen, layer, lambda x: layer(x, x), inputs(same=True), (0, 0, 0))


@pytest.mark.parametrize("name", MULTI_HEAD)
def test_multi_head_cross_attention(frozen, name):
    layer = MULTI_HEAD[name]()
    check_multi_head(frozen, layer, lambda q, v, k: layer(q, v, key=k), inputs(), (0, 1, 2))


@pytest.mark.parametrize("name", MULTI_HEAD)
def test_multi_head_attention_without_a_key(frozen, name):
    layer = MULTI_HEAD[name]()
    query, value, _ = inputs()
    check_multi_head(frozen, layer, lambda q, v: layer(q, v), [query, value], (0, 1, 1))


@pytest.mark.parametrize("name", MULTI_HEAD)
def test_arguments_in_any_order(frozen, name):
    layer = MULTI_HEAD[name]()
    query, value, key = inputs()
    build = lambda k, v, q: layer(value=v, key=k, query=q)
    check_multi_head(frozen, layer, build, [key, value, query], (2, 1, 0))


@pytest.mark.parametrize("name", ["plain", "grouped"])
def test_causal_attention(frozen, name):
    layer = MULTI_HEAD[name]()
    build = lambda x: layer(x, x, use_causal_mask=True)
    check_multi_head(frozen, layer, build, inputs(same=True), (0, 0, 0), CAUSAL)


@pytest.mark.parametrize("name", ["plain", "grouped"])
def test_attention_mask_as_an_array(frozen, name):
    layer, allowed = MULTI_HEAD[name](), np.random.default_rng(4).random((BATCH, QUERIES, KEYS)) > 0.4
    allowed[:, :, 0] = True
    build = lambda q, v, k: layer(q, v, k, attention_mask=allowed)
    check_multi_head(frozen, layer, build, inputs(), (0, 1, 2), allowed)


def test_attention_mask_as_an_input(frozen):
    layer, allowed = L.MultiHeadAttention(2, 4), np.random.default_rng(4).random((BATCH, QUERIES, KEYS)) > 0.4
    allowed[:, :, 0] = True
    build = lambda q, v, k, mask: layer(q, v, k, attention_mask=mask)
    check_multi_head(frozen, layer, build, [*inputs(), allowed.astype("float64")], (0, 1, 2), allowed)


@pytest.mark.parametrize("name", ["plain", "grouped"])
def test_the_gate_of_attention_is_a_constant(frozen, name):
    layer = MULTI_HEAD[name](use_gate=True)

    def gate(query):
        kernel, *bias = weights_of(layer, "gate")
        return sigmoid(np.einsum("nqd,dhc->nqhc", query, kernel) + (bias[0] if bias else 0))

    check_multi_head(frozen, layer, lambda x: layer(x, x), inputs(same=True), (0, 0, 0), gate=gate)


def test_attention_over_several_axes(frozen):
    layer = L.MultiHeadAttention(2, 4, attention_axes=(1, 2))
    (got,), offsets, output, cotangent = walk(frozen, lambda x: layer(x, x), image := normal(BATCH, 2, 3, 4))
    names = ("query", "key", "value", "output")
    (qk, qb), (kk, kb), (vk, vb), (ok, ob) = (weights_of(layer, name) for name in names)
    queries, keys = np.einsum("nabd,dhc->nabhc", image, qk) + qb, np.einsum("nabd,dhc->nabhc", image, kk) + kb
    scores = softmax(np.einsum("nabhc,nxyhc->nhabxy", queries, keys) / 2, axes=(-2, -1))
    attended = np.einsum("nhabxy,nxyhc->nabhc", scores, np.einsum("nabd,dhc->nabhc", image, vk) + vb)
    np.testing.assert_allclose(output, np.einsum("nabhc,hco->nabo", attended, ok) + ob, rtol=0, atol=1e-9)
    expected = np.einsum("nabo,hco,nhabxy,dhc->nxyd", cotangent, ok, scores, vk)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)
    constant = np.einsum("hc,hco->o", vb, ok) + ob
    np.testing.assert_allclose(offsets, (cotangent * constant).sum((1, 2, 3)), rtol=0, atol=1e-9)


def check_single_head(frozen, build, values, scores, place=1):
    got, offsets, output, cotangent = walk(frozen, build, *values)
    np.testing.assert_allclose(output, scores @ values[place], rtol=0, atol=1e-9)
    for position, weights in enumerate(got):
        wanted = np.einsum("nqk,nqd->nkd", scores, cotangent) if position == place else 0.0
        np.testing.assert_allclose(weights, np.broadcast_to(wanted, weights.shape), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(offsets, 0)


def alike(*seeds):
    return [normal(BATCH, QUERIES if seed == 0 else KEYS, 5, seed=seed) for seed in seeds]


def test_dot_product_attention_layer(frozen):
    query, value, key = values = alike(0, 1, 2)
    scores = softmax(query @ np.swapaxes(key, 1, 2))
    check_single_head(frozen, lambda q, v, k: L.Attention()([q, v, k]), values, scores)
    scores = softmax(query @ np.swapaxes(value, 1, 2))
    check_single_head(frozen, lambda q, v: L.Attention()([q, v]), [query, value], scores)


def test_scaled_and_causal_attention_layer(frozen):
    (x,) = alike(1)
    layer = L.Attention(use_scale=True)
    layer.build([(None, KEYS, 5), (None, KEYS, 5)])
    build = lambda x: layer([x, x], use_causal_mask=True)
    model_scale = np.random.default_rng(1).normal(size=()) * 0.5
    scores = softmax(np.where(CAUSAL, model_scale * x @ np.swapaxes(x, 1, 2), -1e30))
    check_single_head(frozen, build, [x], scores, place=0)


def test_additive_attention_layer(frozen):
    query, _, key = values = alike(0, 1, 2)
    scores = softmax(np.tanh(query[:, :, None] + key[:, None]).sum(-1))
    layer = L.AdditiveAttention(use_scale=False)
    check_single_head(frozen, lambda q, v, k: layer([q, v, k]), values, scores)


def test_masks_of_the_attention_layer(frozen):
    query, _, key = values = alike(0, 1, 2)
    mask = np.array([[True, False, True, True], [True, True, True, False]])
    scores = softmax(np.where(mask[:, None], query @ np.swapaxes(key, 1, 2), -1e30))
    build = lambda q, v, k: L.Attention()([q, v, k], mask=[None, ops.convert_to_tensor(mask)])
    check_single_head(frozen, build, values, scores)


def test_attention_of_operations(frozen):
    query, _, key = values = alike(0, 1, 2)
    scores = softmax(query @ np.swapaxes(key, 1, 2) / np.sqrt(5))

    def build(q, v, k):
        return ops.matmul(ops.softmax(ops.matmul(q, ops.transpose(k, (0, 2, 1))) / np.sqrt(5)), v)

    check_single_head(frozen, build, values, scores)

    def layers(q, v, k):
        return L.Dot(axes=(2, 1))([L.Dropout(0.1)(L.Softmax()(L.Dot(axes=2)([q, k]) / np.sqrt(5))), v])

    check_single_head(frozen, layers, values, scores)


def test_attention_in_one_operation(frozen):
    query, value, key = (normal(BATCH, KEYS, 2, 4, seed=seed) for seed in range(3))
    (got_q, got_v, got_k), offsets, output, cotangent = walk(
        frozen, lambda q, v, k: ops.dot_product_attention(q, k, v), query, value, key
    )
    scores = softmax(np.einsum("nqhc,nkhc->nhqk", query, key) / 2)
    np.testing.assert_allclose(output, np.einsum("nhqk,nkhc->nqhc", scores, value), rtol=0, atol=1e-9)
    np.testing.assert_allclose(got_v, np.einsum("nhqk,nqhc->nkhc", scores, cotangent), rtol=0, atol=1e-9)
    assert not got_q.any()
    assert not got_k.any()
    np.testing.assert_allclose(offsets, 0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("used", [True, False])
def test_scores_that_are_returned_are_constants(frozen, used):
    (x,) = alike(1)
    layer = L.MultiHeadAttention(2, 4, use_bias=False)

    def build(x):
        output, scores = layer(x, x, return_attention_scores=True)
        return L.Concatenate()([output, ops.mean(scores, axis=1)]) if used else output

    (got,), offsets, _, cotangent = walk(frozen, build, x)
    kernels = [weights_of(layer, name)[0] for name in ("query", "key", "value", "output")]
    queries, keys = (np.einsum("nqd,dhc->nqhc", x, kernel) for kernel in kernels[:2])
    scores = softmax(np.einsum("nqhc,nkhc->nhqk", queries, keys) / 2)
    expected = np.einsum("nqo,hco,nhqk,dhc->nkd", cotangent[..., :5], kernels[3], scores, kernels[2])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)
    constants = (cotangent[..., 5:] * scores.mean(1)).sum((1, 2)) if used else 0
    np.testing.assert_allclose(offsets, constants, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_dropout_of_scores_in_training_counts_by_its_mean(frozen, dropout):
    (x,) = alike(1)
    layer = L.MultiHeadAttention(2, 4, dropout=dropout, seed=3)
    inputs = keras.Input(x.shape[1:], dtype="float64")
    model = frozen.randomise(keras.Model(inputs, L.Flatten()(layer(inputs, inputs))), scale=0.5)
    cotangent = normal(BATCH, KEYS * 5, seed=9)
    at_inference, _, _ = frozen.walk(model, x, cotangent)
    weights, offsets, logits = frozen.walk(model, x, cotangent, training=True)
    np.testing.assert_allclose(weights, at_inference, rtol=0, atol=1e-12)
    np.testing.assert_allclose((weights * x).sum((1, 2)) + offsets, (cotangent * logits).sum(1), rtol=0, atol=1e-9)
