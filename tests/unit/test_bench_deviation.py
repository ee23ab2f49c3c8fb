"""Whether an engine computes the same function."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.deviation import Deviation, deviation
from benchmarks.models import Reference, load_source
from benchmarks.workloads import make_batch, make_workload


def test_deviation_sees_one_wrong_token() -> None:
    expected = torch.randn(10, 8, dtype=torch.float64)
    output = expected.clone()
    assert deviation(output, expected, (4, 6)).error == 0
    output[7] = -output[7]
    found = deviation(output, expected, (4, 6))
    assert found.token_cosine == pytest.approx(-1)
    assert found.refusal("fp32", 1e-7)


@pytest.mark.parametrize(
    ("error", "pooled", "plain", "accepted"),
    [
        (1.9e-3, 1, 1e-3, True),
        (2.1e-3, 1, 1e-3, False),
        (1e-7, 1, 0.0, True),
        (0.2, 0.999, None, True),
        (0, 0.997, None, False),
    ],
)
def test_refusal(error: float, pooled: float, plain: float | None, accepted: bool) -> None:
    assert (Deviation(error, 1, pooled).refusal("int8", plain) is None) is accepted


def test_8_bits_are_told_from_another_function() -> None:
    workload = make_workload("4x24", "uniform")
    batch = make_batch(workload, 30522)
    source = load_source("minilm")
    expected = Reference(source)(batch)

    def refusal(model: Any, mask: torch.Tensor) -> str | None:
        with torch.no_grad():
            hidden = model(input_ids=batch.ids, attention_mask=mask).last_hidden_state
        return deviation(hidden[batch.mask > 0], expected, workload.lengths).refusal("int8", None)

    assert refusal(source.model, batch.mask) is None
    assert "is below 0.998" in (refusal(source.model, torch.ones_like(batch.mask)) or "")
    source.model.encoder.layer = source.model.encoder.layer[:-1]
    assert "is below 0.998" in (refusal(source.model, batch.mask) or "")
