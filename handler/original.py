"""Archives of format ``transformers`` (kind ``ori``): the checkpoint as it is, for comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from handler.archive import ArchiveError, ArchiveFacts
from handler.packing import Arrays

CLASSES = {
    "sequence_classification": "AutoModelForSequenceClassification",
    "rerank": "AutoModelForSequenceClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "token_classification": "AutoModelForTokenClassification",
    "fill_mask": "AutoModelForMaskedLM",
    "embedding": "AutoModel",
}

_ENCODERS = ("t5", "mt5")
"""Model types whose AutoModel has a decoder too."""


def class_of(task: str, model_type: str) -> str:
    """transformers' class that loads a model type for a task."""
    return "AutoModelForTextEncoding" if task == "embedding" and model_type in _ENCODERS else CLASSES[task]


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
            inputs["attention_mask"] = (marked > 0).long()
            outputs = self._module(**inputs).to_tuple()
            if self._head is not None:
                outputs = (self._head(outputs[0], marked),)
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
        loader = getattr(transformers, class_of(facts.task, facts.family))
        model = loader.from_pretrained(folder, dtype=dtype, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file makes the library raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArchiveError(f"{folder.name}/ cannot be loaded ({reason}); build the archive again") from error
    return model.train(False)


HEAD = "head.pt"
"""Within the checkpoint's folder: an embedding model's pooling and layers, traced, for (hidden, mask)."""


def load_head(folder: Path, device: torch.device) -> Any:
    """What stands behind the encoder of an embedding model that is more than ``pool``; None: nothing does."""
    if not (folder / HEAD).is_file():
        return None
    try:
        return torch.jit.load(str(folder / HEAD), map_location=device)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ArchiveError(f"{folder.name}/{HEAD} cannot be loaded ({reason}); build the archive again") from error


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """hidden [B, S, H] -> [B, H] in fp32: the first token, or the mean over valid tokens."""
    hidden = hidden.float()
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask.unsqueeze(-1).float()
    return (hidden * weights).sum(1) / weights.sum(1)
