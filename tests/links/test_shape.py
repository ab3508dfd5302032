"""`scale_by_shape`: multiply the updates of a matrix by a factor that follows from its shape."""

import pytest
import run

import adam_tx


def scaled(factor, times, fan_in=4, fan_out=3):
    by = {"width": max(1, fan_out / fan_in), "spectral": fan_out / fan_in, "rms": max(fan_in, fan_out)}

    def oracle(steps):
        for u, _, _ in steps:
            yield u * times * by[factor] ** 0.5

    return oracle


@pytest.mark.parametrize(
    ("settings", "oracle", "shape"),
    [
        ({}, scaled("width", 1.0), (4, 3)),
        ({"factor": "width"}, scaled("width", 1.0, 3, 5), (3, 5)),
        ({"factor": "spectral", "times": 2.0}, scaled("spectral", 2.0), (4, 3)),
        ({"factor": "rms", "times": 0.2}, scaled("rms", 0.2), (4, 3)),
        ({"axes": (2, (0, 1))}, scaled("width", 1.0, 3, 10), (5, 2, 3)),
        ({"axes": (2, 0)}, scaled("width", 1.0, 3, 5), (5, 2, 3)),
    ],
)
def test_scale_by_shape_is_its_formula(settings, oracle, shape):
    run.assert_follows(adam_tx.scale_by_shape(**settings), oracle, shape=shape, steps=2)


def test_an_unknown_factor_is_refused():
    with pytest.raises(ValueError, match=r"factor must be one of \['width', 'spectral', 'rms'\], got 'original'"):
        adam_tx.scale_by_shape("original")
