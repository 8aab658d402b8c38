"""Writes the ONNX files of Keras in this folder, with their inputs and outputs.

    pip install tensorflow-cpu==2.21.0 tf_keras==2.21.0 tf2onnx==1.17.0 onnx==1.23.2
    python tests/kept/onnx/write_keras.py

Each file comes with ``.npz``: x [B, T, I] and y, what Keras computes. Weights and biases are drawn.
Of Keras 2 (tf_keras) tf2onnx knows the GRU, of Keras 3 it does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
import tf_keras

FOLDER = Path(__file__).parent


def models() -> dict[str, tuple[Any, list[Any]]]:
    """By name: the library and the layers of a model."""
    layers, older = keras.layers, tf_keras.layers
    whole = {"return_sequences": True}
    return {
        "keras_lstm": (
            keras,
            [layers.LSTM(4, **whole), layers.LSTM(4, **whole), layers.Dense(5)],
        ),
        "keras_narrowing": (keras, [layers.LSTM(4, **whole), layers.LSTM(3)]),
        "keras_bidirectional": (
            keras,
            [
                layers.Bidirectional(layers.LSTM(4, **whole)),
                layers.Bidirectional(layers.LSTM(4, **whole)),
                layers.Dense(5),
            ],
        ),
        "keras_gru": (keras, [layers.GRU(4, **whole)]),
        "keras2_gru": (
            tf_keras,
            [older.GRU(4, **whole), older.GRU(4, **whole), older.Dense(5)],
        ),
        "keras2_bidirectional_gru": (
            tf_keras,
            [older.Bidirectional(older.GRU(4, **whole)), older.Dense(5)],
        ),
    }


def main() -> None:
    rng = np.random.default_rng(0)
    for name, (library, parts) in models().items():
        given = library.Input((None, 3))
        result = given
        for part in parts:
            result = part(result)
        model = library.Model(given, result)
        model.set_weights([rng.uniform(-1, 1, w.shape) for w in model.get_weights()])
        spec = [tf.TensorSpec((None, None, 3), tf.float32, name="x")]
        function = tf.function(lambda x, model=model: model(x), input_signature=spec)
        made, _ = tf2onnx.convert.from_function(function, input_signature=spec, opset=17)
        x = rng.uniform(-1, 1, (2, 6, 3)).astype("float32")
        onnx.save(made, FOLDER / f"{name}.onnx")
        np.savez(FOLDER / f"{name}.npz", x=x, y=np.asarray(model(x)))


if __name__ == "__main__":
    main()
