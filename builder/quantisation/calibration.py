"""What an encoder is shown while its 8-bit form is chosen and judged: generated sequences, or texts of the user's.

Static activation scales are not among int8's uses: the engines round each token with a range of its own
(docs/cpu-log.md has the comparison). Inputs serve to fit factors and integers, to measure how far activations reach,
and which matrices lose too much in 8 bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from builder.checkpoint import Checkpoint
from builder.errors import BuildError
from builder.families import spec_of
from builder.gate.probes import Inputs
from builder.quantisation.sentences import SENTENCES
from builder.slots import matrices

Text = tuple[str, str | None]
"""A text and, for pairs, the second one."""

_T = TypeVar("_T")

MOST_TEXTS = 64
MOST_TOKENS = 4096
LONGEST = 128
"""Of a longer file texts are taken at even distances; each is cut at LONGEST tokens; MOST_TOKENS of all together."""

_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
_REPEATS = (1, 2, 3, 4, 6, 8, 12, 16)
_DEGENERATE = ("", "a", "!!!", "...", "!!! ???", "!!! ??? ...", "1 2 3 4 5", "[ ] { } ( )")
"""Strings whose tokens err alike in 8 bits, so that pooling does not level it out."""
_BATCH = 16
_FITTED = ((16, 32), (32, 16), (64, 8), (128, 4))
"""Lengths of the random sequences that integers are fitted to besides, and how many there are of each."""
_MOST_BYTES = 1 << 30
"""Of all samples together."""


def read_texts(path: Path) -> list[Text]:
    """The texts of a calibration file.

    SQuAD's JSON (question and context make a pair), JSON lines with ``text`` and maybe ``text_pair``, or plain text, a
    line each. Raises BuildError in one line for a file that cannot be read or holds no text.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"--calibrate {path.name}: {error}") from error
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    if not lines:
        raise BuildError(f"--calibrate {path.name}: the file holds no text")
    if not lines[0].startswith("{"):
        return [(line, None) for line in lines]
    try:
        whole = json.loads(content)
    except json.JSONDecodeError:
        whole = None
    if whole is None or (len(lines) == 1 and "data" not in whole):
        return [_json_line(path, number, line) for number, line in enumerate(lines, 1)]
    try:
        texts = _squad(whole)
    except (KeyError, TypeError):
        raise BuildError(f"--calibrate {path.name}: a JSON object, but not of SQuAD's form") from None
    if not texts:
        raise BuildError(f"--calibrate {path.name}: the file holds no text")
    return texts


def _squad(content: Any) -> list[Text]:
    paragraphs = [paragraph for article in content["data"] for paragraph in article["paragraphs"]]
    return [(question["question"], p["context"]) for p in paragraphs for question in p["qas"]]


def _json_line(path: Path, number: int, line: str) -> Text:
    try:
        row = json.loads(line)
        text, pair = row["text"], row.get("text_pair")
    except (ValueError, KeyError, TypeError) as error:
        raise BuildError(f'--calibrate {path.name}, line {number}: expected {{"text": "..."}}') from error
    if not isinstance(text, str) or not isinstance(pair, str | None):
        raise BuildError(f"--calibrate {path.name}, line {number}: text and text_pair must be strings")
    return text, pair


@dataclass(frozen=True)
class Calibration:
    """Named inputs and, in words, where they come from."""

    source: str
    inputs: list[tuple[str, Inputs]]


def calibration(checkpoint: Checkpoint, path: Path | None) -> Calibration:
    """The texts of ``path``, a sensible few of them, or without a file what can be made up. Raises BuildError.

    Made up are sequences of random ids, single ids repeated, and strings of punctuation; the same ones at every build.
    """
    tokenizer = checkpoint.load_tokenizer()
    longest = min(LONGEST, checkpoint.longest)
    if path is None:
        rows = _generated(checkpoint, tokenizer, longest)
        strings = [tokenizer(text, truncation=True, max_length=longest) for text in _DEGENERATE]
        inputs = [("generated sequences", _padded(checkpoint, rows)), ("punctuation", _encoded(checkpoint, strings))]
        return Calibration(f"{len(rows) + len(strings)} generated sequences", inputs)
    texts = read_texts(path)
    answers = [tokenizer(*_given(text), truncation=True, max_length=longest) for text in _spread(texts, MOST_TEXTS)]
    tokens = sum(len(answer.input_ids) for answer in answers)
    answers = _spread(answers, len(answers) * MOST_TOKENS // max(tokens, MOST_TOKENS))
    answers.sort(key=lambda answer: len(answer.input_ids))
    batches = []
    for start in range(0, len(answers), _BATCH):
        part = answers[start : start + _BATCH]
        batches.append((f"texts {start + 1} to {start + len(part)} by length", _encoded(checkpoint, part)))
    return Calibration(f"{len(answers)} of {len(texts)} texts", batches)


def _spread(items: Sequence[_T], most: int) -> list[_T]:
    """At most so many of the items, at even distances."""
    count = min(most, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _generated(checkpoint: Checkpoint, tokenizer: Any, longest: int) -> list[list[int]]:
    """Random ids between the special tokens, of many lengths, and single ids repeated, as in "!!!"."""
    draws = _Draws(checkpoint, tokenizer, longest, seed=20)
    mixed = [draws.ids(length) for length in _LENGTHS]
    repeated = [draws.ids(1) * min(length, draws.room) for length in _REPEATS]
    return [draws.framed(row) for row in mixed + repeated]


def more_sequences(checkpoint: Checkpoint) -> list[Inputs]:
    """What integers are fitted to besides, the same at every build: to a few hundred tokens they would fit better than
    to anything else. Some 2,000 tokens of random ids between the special ones, and plain sentences."""
    tokenizer, longest = checkpoint.load_tokenizer(), min(LONGEST, checkpoint.longest)
    draws = _Draws(checkpoint, tokenizer, longest, seed=21)
    frame = len(draws.framed([]))
    return [
        plain_sentences(checkpoint),
        *(
            _padded(checkpoint, [draws.framed(draws.ids(length - frame)) for _ in range(count)])
            for length, count in _FITTED
        ),
    ]


def plain_sentences(checkpoint: Checkpoint) -> Inputs:
    """Text to judge and fit by where there is none of the user's."""
    tokenizer, longest = checkpoint.load_tokenizer(), min(LONGEST, checkpoint.longest)
    return _encoded(checkpoint, [tokenizer(text, truncation=True, max_length=longest) for text in SENTENCES])


class _Draws:
    """Random ids that are no special tokens."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: Any, longest: int, *, seed: int) -> None:
        frame = tokenizer("").input_ids
        self.before, self.after = frame[: len(frame) // 2], frame[len(frame) // 2 :]
        special = set(tokenizer.all_special_ids)
        size = min(len(tokenizer), checkpoint.config.vocab_size)
        self.ordinary = torch.tensor([index for index in range(size) if index not in special])
        self.generator = torch.Generator().manual_seed(seed)
        self.room = longest - len(frame)

    def ids(self, count: int) -> list[int]:
        """So many, or as many as there is room for."""
        shape = (max(1, min(count, self.room)),)
        return self.ordinary[torch.randint(len(self.ordinary), shape, generator=self.generator)].tolist()

    def framed(self, row: list[int]) -> list[int]:
        """Between the special tokens."""
        return self.before + row + self.after


def _padded(checkpoint: Checkpoint, rows: Sequence[list[int]]) -> Inputs:
    pad = checkpoint.config.pad_token_id or 0
    length = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return ids, torch.zeros_like(ids), mask


def _encoded(checkpoint: Checkpoint, rows: Sequence[Any]) -> Inputs:
    """The tokenizer's answers as one batch."""
    ids, segments, mask = _padded(checkpoint, [row.input_ids for row in rows])
    if checkpoint.uses_segments:
        for index, row in enumerate(rows):
            segments[index, : len(row.input_ids)] = torch.tensor(row.token_type_ids)
    return ids, segments, mask


def _given(text: Text) -> list[str]:
    return [part for part in text if part is not None]


Span = tuple[Tensor, Tensor]
"""The lowest and the highest value of each input of a product, fp32 [inputs]."""


def measured_spans(checkpoint: Checkpoint, base: nn.Module, batches: Sequence[Inputs]) -> dict[str, Span]:
    """How far the inputs of all products go, by the matrix's slot name.

    ``base`` is the checkpoint's encoder as transformers has it.
    """
    return spans_of(base, _watched(checkpoint), batches, lambda inputs: hidden_states(checkpoint, base, inputs))


def samples(checkpoint: Checkpoint, base: nn.Module, batches: Sequence[Inputs]) -> dict[str, Tensor]:
    """Inputs of all products [tokens, inputs] in bf16, by the matrix's slot name; as many tokens at even distances as
    ``_MOST_BYTES`` hold of all together."""
    bytes_of_a_token = sum(2 * slot.columns for slot in matrices(spec_of(checkpoint.config)))
    tokens = sum(int(mask.sum()) for _, _, mask in batches)
    stride = max(1, -(-tokens * bytes_of_a_token // _MOST_BYTES))
    found: dict[str, list[Tensor]] = {}

    def keep(matrix: str, rows: Tensor) -> None:
        found.setdefault(matrix, []).append(rows[::stride].to(torch.bfloat16))

    watch(base, _watched(checkpoint), batches, lambda inputs: hidden_states(checkpoint, base, inputs), keep)
    return {matrix: torch.cat(rows) for matrix, rows in found.items()}


def _watched(checkpoint: Checkpoint) -> dict[str, str]:
    """A module of each matrix, by its slot name."""
    # Of qkv that of the values: DeBERTa's projections of queries and keys are given positions too.
    return {
        slot.name: checkpoint.family.modules(slot.name, slot.layer)[-1] for slot in matrices(spec_of(checkpoint.config))
    }


def spans_of(
    base: nn.Module,
    watched: Mapping[str, str],
    batches: Sequence[Inputs],
    run: Callable[[Inputs], object],
    *,
    made: bool = False,
) -> dict[str, Span]:
    """What the inputs of ``base``'s modules span, or with ``made`` their results, by the keys of ``watched``, while
    ``run`` computes the batches; pads do not count."""
    spans: dict[str, Span] = {}

    def widen(matrix: str, rows: Tensor) -> None:
        low, high = rows.float().aminmax(dim=0)
        if matrix in spans:
            low, high = torch.minimum(spans[matrix][0], low), torch.maximum(spans[matrix][1], high)
        spans[matrix] = low, high

    watch(base, watched, batches, run, widen, made=made)
    return spans


def watch(
    base: nn.Module,
    watched: Mapping[str, str],
    batches: Sequence[Inputs],
    run: Callable[[Inputs], object],
    see: Callable[[str, Tensor], None],
    *,
    made: bool = False,
) -> None:
    """Show ``see`` the rows of tokens [tokens, inputs] that each of ``base``'s modules is given while ``run`` computes
    the batches, or with ``made`` those that it makes, under the keys of ``watched``."""
    valid = torch.empty(0)

    def hook_of(key: str) -> Any:
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...], *result: Tensor) -> None:
            see(key, (result or arguments)[0][valid])

        return hook

    modules = {key: base.get_submodule(path) for key, path in watched.items()}
    hooks = [
        module.register_forward_hook(hook_of(key)) if made else module.register_forward_pre_hook(hook_of(key))
        for key, module in modules.items()
    ]
    try:
        for inputs in batches:
            valid = inputs[2].bool()
            run(inputs)
    finally:
        for handle in hooks:
            handle.remove()


def hidden_states(checkpoint: Checkpoint, base: nn.Module, inputs: Inputs) -> Tensor:
    """The last hidden state [B, S, H] of the checkpoint's own encoder."""
    ids, segments, mask = inputs
    extra = {"token_type_ids": segments} if checkpoint.uses_segments else {}
    with torch.inference_mode():
        return base(input_ids=ids, attention_mask=mask, return_dict=False, **extra)[0]
