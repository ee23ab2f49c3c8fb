"""Configs on the hub that were written for a repository's own code, brought into transformers' form.

The code itself is never run. Their keys and what they mean: Alibaba-NLP/new-impl (model type ``new``) and
nomic-ai/nomic-bert-2048, of whose encoders transformers has had versions of its own since 5.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builder.errors import BuildError

Content = Mapping[str, Any]
MODEL_TYPES = ("new",)
"""Those that transformers itself does not know."""


def native(content: Content, source: str) -> dict[str, Any] | None:
    """What transformers' own config says in the place of ``content``; None where it is one already.

    Raises BuildError naming the key of what transformers' version does not compute.
    """
    kind = content.get("model_type")
    if kind == "new":
        return _new(content, source)
    if kind == "nomic_bert" and "n_embd" in content:
        return _nomic(content, source)
    return None


def _new(content: Content, source: str) -> dict[str, Any]:
    _only(content, source, {
        "position_embedding_type": ("rope", None), "layer_norm_type": ("layer_norm", None),
        "logn_attention_scale": (False, None), "logn_attention_clip1": (False, None),
    })  # fmt: skip
    made = {key: value for key, value in content.items() if key not in ("auto_map", "rope_scaling", "rope_theta")}
    theta = float(content.get("rope_theta", 10_000.0))
    return {**made, "model_type": "gte", "position_embedding_type": "absolute", "rope_parameters": _ntk(content, theta)}


def _ntk(content: Content, theta: float) -> dict[str, Any]:
    """NTK scaling by f: the base times f, then frequencies over f^(2 / head), which is one linear scaling."""
    scaling = content.get("rope_scaling") or {}
    kind, factor = scaling.get("type"), float(scaling.get("factor", 1.0))
    if not scaling:
        return {"rope_type": "default", "rope_theta": theta}
    if kind != "ntk" or scaling.get("mixed_b") is not None:
        raise BuildError(f"rope_scaling of type {kind!r} is not supported for model type 'new'; supported: ntk")
    head = content["hidden_size"] // content["num_attention_heads"]
    return {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / head)}


_NOMIC = {
    "n_embd": "hidden_size", "n_head": "num_attention_heads", "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers", "n_positions": "max_position_embeddings", "layer_norm_epsilon": "layer_norm_eps",
    "vocab_size": "vocab_size", "type_vocab_size": "type_vocab_size", "pad_token_id": "pad_token_id",
}  # fmt: skip


def _nomic(content: Content, source: str) -> dict[str, Any]:
    _only(content, source, {
        "prenorm": (False, None), "rotary_emb_fraction": (1.0, None), "rotary_emb_interleaved": (False, None),
        "rotary_emb_scale_base": (None,), "rotary_scaling_factor": (None,), "use_rms_norm": (False, None),
        "activation_function": ("swiglu",), "qkv_proj_bias": (False,), "mlp_fc1_bias": (False,),
        "mlp_fc2_bias": (False,), "parallel_block": (False, None), "num_experts": (None, 0),
        "moe_every_n_layers": (None, 0),
    })  # fmt: skip
    kept = ("architectures", "id2label", "label2id", "problem_type", "num_labels", "torch_dtype", "dtype")
    made = {new: content[old] for old, new in _NOMIC.items() if content.get(old) is not None}
    if "intermediate_size" not in made:
        made["intermediate_size"] = 4 * content["n_embd"]
    rotary = {"rope_type": "default", "rope_theta": float(content.get("rotary_emb_base", 10_000.0))}
    said = {key: content[key] for key in kept if key in content}
    return {**said, **made, "model_type": "nomic_bert", "hidden_act": "silu", "rope_parameters": rotary}


def _only(content: Content, source: str, allowed: Mapping[str, tuple[Any, ...]]) -> None:
    for key, values in allowed.items():
        if key in content and content[key] not in values:
            raise BuildError(f"{source}: config.json: {key} is {content[key]!r}, which is not supported")


def shown_as(root: Path, folder: Path, config: Any) -> tempfile.TemporaryDirectory[str]:
    """A checkpoint's folder as other programs can read it: links to its files, and ``config`` as its config.json.

    ``folder``, within ``root``, holds config and weights. It lasts as long as what is returned.
    """
    view = tempfile.TemporaryDirectory(prefix="efft-checkpoint-")
    inner = Path(view.name) / folder.relative_to(root)
    inner.mkdir(parents=True, exist_ok=True)
    for there, shown in {root: Path(view.name), folder: inner}.items():
        for path in there.iterdir():
            if path.name != "config.json" and not (shown / path.name).exists():
                (shown / path.name).symlink_to(path, target_is_directory=path.is_dir())
    (inner / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    return view
