"""Errors against a reference in np.longdouble, in units of what one rounding does to the terms of a result.

    error of a result = max |result - reference| / (eps scale + tiny),  eps = 2^-23, tiny = 2^-126

    mean    scale = |mean| + std
    var     scale = var + (eps mean)^2
    y       scale = |scale xhat| + |scale| + |bias|
    dx      scale = |scale| invstd (|dy| + E|dy| + |xhat| E|dy xhat|)
    dscale  scale = sum(|dy xhat|) + eps |mean| invstd sum(|dy|)
    dbias   scale = sum(|dy|)

eps |mean| is what rounding the data to float32 did to them already; it gives constant channels a scale. Reference: x
and dy as they are stored; the mean is found twice, the second time as the mean of the distances from the first; sums of
up to 2^20 terms are pairwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numerics_methods import OURS, Case, Results
from numpy.typing import NDArray

from oclbn.truth.bounds import Bound

Long = np.longdouble
EPS, TINY = float(np.finfo(np.float32).eps), float(np.finfo(np.float32).tiny)
NAMES = ("y", "dx", "var", "mean", "dscale", "dbias")
_PIECE = 1 << 20  # elements that are held in longdouble at a time


class Channel:
    """One channel's right results and their scales; oclbn.truth.bounds' bounds on oclbn's own."""

    def __init__(self, case: Case, x: NDArray[Any], dy: NDArray[Any], at: int) -> None:
        self.x, self.dy = x, dy
        self.factor, self.bias = Long(case.host.scale[at]), Long(case.host.bias[at])
        self.count = Long(x.size)
        mean = self._sum(lambda x, _: x) / self.count
        mean += self._sum(lambda x, _: x - mean) / self.count
        var = self._sum(lambda x, _: (x - mean) ** 2) / self.count
        shifted = var + Long(case.epsilon)
        invstd = Long(0) if shifted == 0 else 1 / np.sqrt(shifted)
        self.mean, self.invstd = mean, invstd
        dbias, slopes = self._sum(lambda _, dy: dy), self._sum(lambda _, dy: np.abs(dy))
        dscale = self._sum(lambda x, dy: (x - mean) * dy) * invstd
        self.products = self._sum(lambda x, dy: np.abs((x - mean) * dy)) * invstd
        self.right = {"mean": mean, "var": var, "dscale": dscale, "dbias": dbias}
        self.scale = {
            "mean": abs(mean) + np.sqrt(var),
            "var": var + (EPS * mean) ** 2,
            "dscale": self.products + EPS * abs(mean) * invstd * slopes,
            "dbias": slopes,
        }
        bound = Bound(x.reshape(1, 1, -1), float(mean), float(invstd), self.factor, self.bias, axis=1, dtype=np.float32)
        gradients = bound.gradients(dy.reshape(1, 1, -1), training=True)
        self.bound = {"mean": bound.stored_mean()[0], "var": bound.m2()[0] / x.size}
        self.bound |= {"dscale": gradients[1][0], "dbias": gradients[2][0]}
        self.element_bound = {"y": bound.y().ravel(), "dx": gradients[0].ravel()}

    def elements(self) -> Iterator[tuple[slice, dict[str, tuple[Any, Any]]]]:
        """Piece by piece: where it lies, and of "y" and "dx" what is right and its scale."""
        for start in range(0, self.x.size, _PIECE):
            piece = slice(start, start + _PIECE)
            slopes = self.dy[piece].astype(Long)
            xhat = (self.x[piece].astype(Long) - self.mean) * self.invstd
            level, tilt = self.right["dbias"] / self.count, self.right["dscale"] / self.count
            shares = np.abs(slopes) + self.scale["dbias"] / self.count
            shares += np.abs(xhat) * (self.products / self.count)
            gain = self.factor * self.invstd
            yield (
                piece,
                {
                    "y": (
                        xhat * self.factor + self.bias,
                        np.abs(self.factor * xhat) + abs(self.factor) + abs(self.bias),
                    ),
                    "dx": (gain * (slopes - level - xhat * tilt), abs(gain) * shares),
                },
            )

    def _sum(self, terms: Callable[[Any, Any], Any]) -> Any:
        """Over the elements of x and dy."""
        total = Long(0)
        for start in range(0, self.x.size, _PIECE):
            piece = slice(start, start + _PIECE)
            total += np.sum(terms(self.x[piece].astype(Long), self.dy[piece].astype(Long)))
        return total


class Errors:
    """The largest errors of one case, over its channels; infinite where only the right result is finite."""

    def __init__(self, case: Case, found: dict[str, Results]) -> None:
        self.case = case
        self.error: dict[tuple[str, str], float] = {}  # (method, result)
        self.of_bound: dict[tuple[str, str], float] = {}  # likewise, of the methods that are oclbn
        self.lost = dict.fromkeys(found, 0)  # channels whose y is not finite
        self.negative = dict.fromkeys(found, 0)  # channels whose variance is below 0
        x, dy = case.rows(case.host.x), case.rows(case.host.dy)
        self.channels = len(x)
        with np.errstate(all="ignore"):
            for at in range(self.channels):
                channel = Channel(case, x[at], dy[at], at)
                for method, results in found.items():
                    self.negative[method] += int(results["var"][at] < 0)
                    self.lost[method] += int(not np.isfinite(results["y"][at]).all())
                for name, right in channel.right.items():
                    self._note(name, at, ..., found, right, channel.scale[name], channel.bound[name])
                for piece, expected in channel.elements():
                    for name, (right, scale) in expected.items():
                        self._note(name, at, piece, found, right, scale, channel.element_bound[name][piece])

    def _note(
        self, name: str, at: int, piece: Any, found: dict[str, Results], right: Any, scale: Any, bound: Any
    ) -> None:
        for method, results in found.items():
            if name not in results:
                continue
            key = method, name
            off = np.abs(results[name][at][piece] - right)
            self.error[key] = max(self.error.get(key, 0.0), _largest(off / (EPS * scale + TINY)))
            if method.startswith(OURS):
                self.of_bound[key] = max(self.of_bound.get(key, 0.0), _largest(off / bound))


def _largest(units: Any) -> float:
    size = float(np.max(units))
    return size if np.isfinite(size) else np.inf
