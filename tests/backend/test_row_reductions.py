import numpy as np
import pytest
from conftest import to_numpy
from keras import ops

from keras_igpt.backend.row_reductions import row_argmax, row_max, row_sum


@pytest.mark.parametrize("width", [1, 7, 12])
def test_rows_are_reduced_as_numpy_does(width):
    rows = np.random.default_rng(0).integers(-3, 3, (4, 5, width)).astype("float32")  # with ties
    inputs = ops.convert_to_tensor(rows)
    np.testing.assert_array_equal(to_numpy(row_argmax(inputs)), rows.argmax(-1))
    np.testing.assert_array_equal(to_numpy(row_max(inputs)), rows.max(-1, keepdims=True))
    np.testing.assert_allclose(to_numpy(row_sum(inputs)), rows.sum(-1, keepdims=True))


def test_the_largest_of_rows_without_a_number_is_in_its_range():
    rows = np.full((2, 6), np.nan, "float32")
    assert (to_numpy(row_argmax(ops.convert_to_tensor(rows))) < 6).all()
