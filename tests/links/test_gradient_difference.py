"""`gradient_difference` and `add_gradient_change`: how the gradient changed since the last update."""

from functools import partial

import run

import adam_tx


def gradient_difference(steps):
    previous = 0.0
    for u, _, _ in steps:
        yield u - previous
        previous = u


def add_gradient_change(steps, gamma, b1):
    previous = 0.0
    for u, _, _ in steps:
        yield u + gamma * b1 / (1 - b1) * (u - previous)
        previous = u


def test_gradient_difference_is_its_formula():
    run.assert_follows(adam_tx.gradient_difference(), gradient_difference)


def test_add_gradient_change_is_its_formula():
    run.assert_follows(adam_tx.add_gradient_change(0.3, 0.8), partial(add_gradient_change, gamma=0.3, b1=0.8))
