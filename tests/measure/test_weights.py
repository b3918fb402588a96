"""Which layer's weights each product of a delegate reads; the bytes are held by the planted faults."""

from __future__ import annotations

import pytest

from hubpub.measure.weights import _misread

NAMES = [f"model.layers.{number}.mlp.{part}" for number in range(3) for part in ("up_proj", "down_proj")] + ["lm_head"]


def read(name: str) -> tuple[str, str]:
    return f"{name}.values", f"{name}.scales"


RIGHT = [read(name) for name in NAMES]


@pytest.mark.parametrize(
    ("products", "wrong"),
    [
        (RIGHT, set()),
        (RIGHT[:3] + RIGHT[4:], {NAMES[3]}),
        ([*RIGHT, RIGHT[-1]], set()),
        ([RIGHT[0], (RIGHT[1][0], RIGHT[3][1]), *RIGHT[2:]], {NAMES[1]}),
        ([*RIGHT[:1], *RIGHT[4:5], *RIGHT[1:4], *RIGHT[5:]], {NAMES[1], NAMES[2], NAMES[3]}),
        ([*RIGHT, ("", "")], {""}),
    ],
    ids=["right", "none reads it", "read twice", "another's scales", "another layer's", "no weight"],
)
def test_a_product_reads_the_weights_of_its_own_layer(products: list[tuple[str, str]], wrong: set[str]) -> None:
    assert set(_misread(products, set(NAMES))) == wrong
