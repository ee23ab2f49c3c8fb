"""A random transformers model beside its packed twin on the GPU."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from builder.encoder import PackedEncoder, pack, prepare
from builder.families import family_of, spec_of
from tests.checkpoints import random_model
from tests.kernels.batches import Batch, joined
from tests.kernels.criterion import assert_close

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Pair:
    """The plain model on the CPU in fp32 and its packed encoder on the GPU in ``dtype``."""

    plain: Any
    packed: PackedEncoder
    dtype: torch.dtype
    pad: int

    def reference(self, ids: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """The plain model's last hidden state [B, S, H], computed on the GPU in ``dtype``."""
        model = copy.deepcopy(self.plain).to("cuda", dtype)
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=mask).last_hidden_state


def make_pair(family: str, data_type: str, output: str = "hidden", prepared: bool = True, **sizes: Any) -> Pair:
    """``sizes`` override the config by BERT's names."""
    model: Any = random_model(family, "embedding", **sizes)
    dtype = DTYPES[data_type]
    spec = spec_of(model.config)
    packed = PackedEncoder(spec, pack(model.state_dict(), family_of(model.config), spec, dtype), output).cuda()
    if prepared:  # as a worker serves it
        packed.matrices = prepare(spec, packed).matrices
    return Pair(model, packed, dtype, model.config.pad_token_id)


def with_output(pair: Pair, output: str) -> Pair:
    """The same weights with another kind of result."""
    packed = copy.copy(pair.packed)
    packed.output = output
    return replace(pair, packed=packed)


def batch(pair: Pair, lengths: list[int], columns: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random ids and mask int64 [B, S] on the GPU, pads on the right."""
    generator = torch.Generator().manual_seed(seed)
    size = (len(lengths), columns or max(lengths))
    mask = (torch.arange(size[1]) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, pair.plain.config.vocab_size, size, generator=generator)
    return torch.where(mask.bool(), ids, pair.pad).cuda(), mask.cuda()


def encode(pair: Pair, ids: Tensor, mask: Tensor) -> Tensor:
    """The packed encoder's result."""
    return pair.packed(ids, torch.zeros_like(ids), mask)


def worst_plain(pair: Pair, ids: Tensor, mask: Tensor, truth: Tensor) -> Tensor:
    """Plain PyTorch's valid rows [T, H], of the run that errs most.

    One run is one draw: fp32 sums differ with their order, which cuBLAS picks by shape, and a token whose attention
    hangs between two keys magnifies that. ELECTRA with 32 tokens here: the largest error is between 3.9e-6 and 2.4e-5
    over 60 random orders, half of them below 9e-6. So the padded batch, its sequences one by one (which is the same for
    a batch of one) and, in fp32, the CPU each draw once.
    """
    runs = [pair.reference(ids, mask, pair.dtype)[mask.bool()]]
    lengths = enumerate(mask.sum(1).tolist())
    rows = [(ids[i : i + 1, :length], mask[i : i + 1, :length]) for i, length in lengths if length]
    runs.append(torch.cat([pair.reference(*row, pair.dtype)[0] for row in rows]))
    if pair.dtype == torch.float32:
        with torch.no_grad():
            hidden = pair.plain(input_ids=ids.cpu(), attention_mask=mask.cpu()).last_hidden_state
        runs.append(hidden[mask.bool().cpu()].to(ids.device))
    return max(runs, key=lambda plain: (plain.double().cpu() - truth).abs().max().item())


def check(pair: Pair, lengths: list[int], columns: int | None = None, seed: int = 0) -> None:
    """Hidden states on valid tokens by the criterion, zeros on pads."""
    ids, mask = batch(pair, lengths, columns, seed)
    got = encode(pair, ids, mask)
    valid = mask.bool()
    truth = pair.reference(ids, mask, torch.float64)[valid].cpu()
    plain = worst_plain(pair, ids, mask, truth)
    assert_close(got[valid], plain, truth)
    assert not got[~valid].any(), "a pad's row is not zero"
    packed = joined(Batch(ids, torch.zeros_like(ids), mask))
    runs = [pair.packed(*packed) for _ in range(3)]  # step by step, captured, replayed
    assert_close(runs[0], plain, truth)
    assert all(torch.equal(run, runs[0]) for run in runs[1:])
    assert torch.equal(encode(pair, ids, mask), got), "a packed call has changed what a padded one gives"
