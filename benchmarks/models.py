"""The encoders that are measured: published sizes with random weights, or a checkpoint's."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.workloads import Batch, Workload

SIZES: dict[str, dict[str, int]] = {
    "minilm": {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096},
}
"""MiniLM-L6, BERT-base and BERT-large."""
NEWER: dict[str, tuple[str, dict[str, Any]]] = {
    "modernbert": ("ModernBert", {}),
    "deberta": ("DebertaV2", {
        "vocab_size": 128_100, "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm",
        "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
        "max_position_embeddings": 512, "layer_norm_eps": 1e-7, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072,
    }),
}  # fmt: skip
"""ModernBERT-base (transformers' defaults) and DeBERTa-v3-base: transformers' class and what its config says."""
NAMES = (*SIZES, *NEWER)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class LastHidden(nn.Module):
    """A transformers encoder with the signature of every model here: (ids, segments, mask) -> [B, S, H]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.segments = getattr(model.config, "type_vocab_size", 0) > 0

    def forward(self, ids: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
        """The last hidden state; values on pads mean nothing."""
        extra = {"token_type_ids": segments} if self.segments else {}
        return self.model(input_ids=ids, attention_mask=mask, return_dict=False, **extra)[0]


class HeadsApart(nn.Module):
    """A DeBERTa's attention, one head at a time through transformers' own module of one head: the same numbers, but of
    the half dozen S x S matrices that it makes for all heads only one head's are held."""

    def __init__(self, attention: Any, config: Any) -> None:
        super().__init__()
        size = attention.attention_head_size
        one = copy.deepcopy(config)
        one.num_attention_heads, one.attention_head_size = 1, size
        self.heads = nn.ModuleList()
        for start in range(0, attention.all_head_size, size):
            head = type(attention)(one).to(attention.query_proj.weight.dtype)
            rows = {name: value[start : start + size] for name, value in attention.state_dict().items()}
            head.load_state_dict(rows)
            self.heads.append(head)

    def forward(self, *inputs: Any, **named: Any) -> tuple[Tensor, None]:
        """As transformers' DisentangledSelfAttention."""
        return torch.cat([head(*inputs, **named)[0] for head in self.heads], dim=-1), None


@dataclass(frozen=True)
class Source:
    """One encoder in fp32 on the CPU; each engine makes its own form of it."""

    name: str
    model: nn.Module

    @property
    def config(self) -> Any:
        """Its transformers config."""
        return self.model.config

    def as_type(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> LastHidden:
        """A copy of its own in ``dtype``."""
        return LastHidden(copy.deepcopy(self.model).to(device).to(dtype)).eval()  # a GPU converts faster


def load_source(name: str) -> Source:
    """A size's name (random weights, seeded) or a local checkpoint folder. ``NAME@N`` has N of the size's layers: what
    engines need for a long text may not fit into memory or time for all.

    Raises ValueError when it is neither. Random weights are fine for time and never for accuracy.
    """
    import transformers

    size, at, layers = name.partition("@")
    if size in (*SIZES, *NEWER):
        torch.manual_seed(0)
        if at and not (layers.isdecimal() and int(layers)):
            raise ValueError(f"{name!r}: {layers!r} is no number of layers; write {size}@1")
        fewer = {"num_hidden_layers": int(layers)} if at else {}
    if size in SIZES:
        config = transformers.BertConfig(**{**SIZES[size], **fewer})
        return Source(name, transformers.BertModel(config, add_pooling_layer=False).eval())
    if size in NEWER:
        kind, options = NEWER[size]
        config = getattr(transformers, f"{kind}Config")(**{**options, **fewer})
        return Source(name, getattr(transformers, f"{kind}Model")(config).eval())
    if not (Path(name) / "config.json").exists():
        raise ValueError(f"{name!r} is neither a size ({', '.join(NAMES)}) nor a checkpoint's folder")
    model = transformers.AutoModel.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return Source(Path(name).resolve().name, model.float().eval())


class Reference:
    """An encoder in float64, and what it returned so far: every type is compared with the same."""

    def __init__(self, source: Source, device: torch.device | str = "cpu") -> None:
        self.source, self.device = source, device
        self._model: LastHidden | None = None
        self._outputs: dict[Workload, Tensor] = {}

    def __call__(self, batch: Batch) -> Tensor:
        """The last hidden state [tokens, H] of the valid tokens on the CPU, one sequence at a time without padding."""
        if batch.workload not in self._outputs:
            if self._model is None:
                self._model = self.source.as_type(torch.float64, self.device)
                if self.source.config.model_type == "deberta-v2":
                    for layer in self._model.model.encoder.layer:
                        layer.attention.self = HeadsApart(layer.attention.self, self.source.config)
                    self._model.to(self.device).eval()
            with torch.inference_mode():
                parts = [self._model(*(t.to(self.device) for t in row.tensors))[0] for row in batch.rows()]
            self._outputs[batch.workload] = torch.cat(parts).cpu()
        return self._outputs[batch.workload]

    def release(self) -> None:
        """Let the weights go; they are made again when another workload asks for them."""
        self._model = None
