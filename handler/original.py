"""Archives of format ``transformers`` (kind ``ori``): the checkpoint as it is, for comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from handler.archive import ArchiveError, ArchiveFacts
from handler.errors import first_line
from handler.formats import load_file
from handler.packing import Arrays

CLASSES = {
    "sequence_classification": "AutoModelForSequenceClassification",
    "rerank": "AutoModelForSequenceClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "token_classification": "AutoModelForTokenClassification",
    "fill_mask": "AutoModelForMaskedLM",
    "embedding": "AutoModel",
    "zero_shot_classification": "AutoModelForSequenceClassification",
    "sparse_embedding": "AutoModelForMaskedLM",
    "multi_vector_embedding": "AutoModel",
    "hybrid_embedding": "AutoModel",
}

_ENCODERS = ("t5", "mt5")
"""Model types whose AutoModel has a decoder too."""


def class_of(task: str, model_type: str, bare: bool) -> str:
    """transformers' class that loads a model type for a task; ``bare``: without a head of its own."""
    name = "AutoModel" if bare else CLASSES[task]
    return "AutoModelForTextEncoding" if name == "AutoModel" and model_type in _ENCODERS else name


UNSEEN = 3
"""In a mask: a token that no token attends to (``handler.packing.collate``)."""


class OriginalModel:
    """The same signature and outputs as a traced model; see handler.runtime.TracedModel."""

    def __init__(self, folder: Path, facts: ArchiveFacts, device: torch.device) -> None:
        self._module = load_original(folder, facts).to(device)
        self._pooling = facts.pooling if facts.task == "embedding" else None
        self._head = load_head(folder, device)
        self._uses_segments = facts.uses_segments
        self.device = device
        self.vocabulary = int(self._module.get_input_embeddings().num_embeddings)

    def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays:
        """See the class."""
        with torch.inference_mode():
            tensors = {"input_ids": ids, "attention_mask": mask}
            if self._uses_segments:
                tensors["token_type_ids"] = segments
            inputs = {name: torch.from_numpy(array).to(self.device) for name, array in tensors.items()}
            marked = inputs["attention_mask"]
            inputs["attention_mask"] = ((marked > 0) & (marked != UNSEEN)).long()
            outputs = self._module(**inputs).to_tuple()
            if self._head is not None:
                made = self._head(outputs[0], marked)
                outputs = made if isinstance(made, tuple) else (made,)
            elif self._pooling is not None:
                outputs = (pool(outputs[0], inputs["attention_mask"], self._pooling),)
            return tuple(output.float().cpu().numpy() for output in outputs)


def load_original(folder: Path, facts: ArchiveFacts) -> Any:
    """The checkpoint as a transformers module in the archive's type. Raises ArchiveError."""
    try:
        import transformers
    except ImportError as error:
        raise ArchiveError("this archive needs transformers; install it in the server's environment") from error
    if not folder.is_dir():
        raise ArchiveError(f"{folder.name}/ is missing from the archive; build it again")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(facts.original_type, torch.float32)
    try:
        lexical = facts.sparse is not None and facts.sparse.kind == "lexical"
        loader = getattr(transformers, class_of(facts.task, facts.family, lexical))
        model = loader.from_pretrained(folder, dtype=dtype, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file makes the library raise
        raise ArchiveError(f"{folder.name}/ cannot be loaded ({first_line(error)}); build the archive again") from error
    return model.train(False)


HEADS = {"torchscript": "head.pt", "export": "head.pt2"}
"""Within the checkpoint's folder: what stands behind an embedding model's encoder for (hidden, mask), by format."""


def load_head(folder: Path, device: torch.device) -> Any:
    """What stands behind the encoder of an embedding model that is more than ``pool``; None: nothing does.

    Raises ArchiveError where its file cannot be read.
    """
    form = next((form for form, name in HEADS.items() if (folder / name).is_file()), None)
    return None if form is None else load_file(folder / HEADS[form], form, device)


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """hidden [B, S, H] -> [B, H] in fp32: the first token, or the mean over valid tokens."""
    hidden = hidden.float()
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask.unsqueeze(-1).float()
    return (hidden * weights).sum(1) / weights.sum(1)
