"""`in_eigenbasis`: links that see the gradient in the eigenbasis of its own covariance, as in SOAP."""

from functools import partial

import numpy as np
import run

import adam_tx


def eigenbasis(steps, decay, every):
    """Around `scale_by_rms(0.8, 0.1)`, whose nu is sorted as the basis is."""
    covariance, basis, nu = [0.0, 0.0], None, 0.0
    for t, (u, g, _) in enumerate(steps):
        if t == 1:
            basis = [np.linalg.eigh(c)[1][:, ::-1] for c in covariance]
        elif t > 1 and (t - 1) % every == 0:
            sizes = [np.einsum("ij,ik,kj->j", q.conj(), c, q).real for q, c in zip(basis, covariance, strict=True)]
            rows, columns = orders = [np.argsort(-size) for size in sizes]
            basis = [np.linalg.qr(c @ q[:, k])[0] for c, q, k in zip(covariance, basis, orders, strict=True)]
            nu = nu[rows][:, columns]
        if t == 0:
            yield np.zeros_like(u)
        else:
            left, right = basis
            turned_u, turned_g = (left.conj().T @ x @ right.conj() for x in (u, g))
            nu = 0.8 * nu + 0.2 * np.abs(turned_g) ** 2
            yield left @ (turned_u / (np.sqrt(nu) + 0.1)) @ right.T
        seen = [g @ g.conj().T, g.T @ g.conj()]
        covariance = [decay * old + (1 - decay) * new for old, new in zip(covariance, seen, strict=True)]


def test_in_eigenbasis_is_its_formula():
    link = adam_tx.in_eigenbasis(adam_tx.scale_by_rms(0.8, 0.1), 0.7, every=3)
    # eigenvectors are as exact as the eigenvalues are apart
    run.assert_follows(link, partial(eigenbasis, decay=0.7, every=3), rtol=1e-9)
