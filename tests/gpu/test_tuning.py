"""The search for the fastest cuBLASLt algorithm, its file, and what uses it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from builder.tune import gemm as tune
from handler import gemm_config
from tests.gpu.encoders import check, make_pair


def test_tuned_plans_are_used_and_right(tmp_path: Path) -> None:
    pair = make_pair("bert", "fp32", hidden_size=128, num_attention_heads=2, intermediate_size=512)
    config = tune.tune(pair.packed.spec, torch.float32, tokens=(32, 64), candidates=8)
    assert len(config["plans"]) == 8
    assert all(plan["nanoseconds"] > 0 for plan in config["plans"])
    tune.write(config, tmp_path / gemm_config.NAME)
    assert json.loads((tmp_path / gemm_config.NAME).read_text()) == config
    assert gemm_config.use(tmp_path) == 8
    check(pair, [20, 9])
    check(pair, [60])


def test_a_plan_that_the_library_does_not_know_is_refused() -> None:
    plan = torch.ops.efft.tune_product(torch.empty(0, device="cuda"), False, 32, 64, 64, 2)
    plan[5] = 10**6
    assert torch.ops.efft.use_plans(plan[None]) == 0
