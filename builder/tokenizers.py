"""A checkpoint's tokenizer, and whether it is the one its files describe and the model can read what it makes.

transformers makes up an empty tokenizer where the files are missing or damaged, and one with a handful of tokens
answers the unknown token to every word: none of it is an error there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from builder.errors import BuildError
from builder.files import first_line, read_json, refuse_pointer
from builder.gate.texts import BY_SCRIPT
from builder.proteins import fast_form, is_protein
from builder.quiet import quiet

VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model",
)  # fmt: skip
_SHARE_LOADED = 0.99
"""Of a file's tokens that the loaded tokenizer must have, at their places; a few may be replaced by special ones."""
_SHARE_UNKNOWN = 0.8
"""Of the tokens of the script that a tokenizer knows best: beyond it the model is blind."""
_LONGEST = 10**9
"""transformers writes 1e30 where a tokenizer knows no longest text."""
_FIRST_TOKEN_TASKS = ("sequence_classification", "rerank", "question_answering", "zero_shot_classification")
_PAIR_TASKS = ("rerank", "question_answering", "zero_shot_classification")


def load_tokenizer(folder: Path, source: str, do_lower_case: bool | None) -> Any:
    """The fast tokenizer; a slow one is converted. Raises BuildError where there is none or it was made up."""
    import transformers

    files = [name for name in VOCABULARIES if (folder / name).is_file()]
    if not files:
        raise BuildError(
            f"{source}: no tokenizer files; put {', '.join(VOCABULARIES[:3])} or what it has beside the weights"
        )
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            refuse_pointer(folder / name)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).is_file():
            read_json(folder / name)
    extra = {} if do_lower_case is None else {"do_lower_case": do_lower_case}
    with quiet():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **extra
            )
        except Exception as error:  # the libraries raise what a damaged file makes them raise, Exception itself too
            raise BuildError(f"{source}: no usable tokenizer ({first_line(error)})") from error
    if is_protein(tokenizer):
        tokenizer = fast_form(tokenizer, source)
    if not tokenizer.is_fast:
        raise BuildError(f"{source}: its tokenizer {type(tokenizer).__name__} has no fast form")
    _check_from_files(tokenizer, folder, files, source)
    return tokenizer


def _check_from_files(tokenizer: Any, folder: Path, files: list[str], source: str) -> None:
    """That the loaded vocabulary is one of the folder's."""
    loaded = tokenizer.get_vocab()
    for name in files:
        held = list(_vocabulary(folder / name, source))
        if not held:
            raise BuildError(f"{source}: {name} holds no tokens; copy it again")
        found = sum(token in loaded and place in (None, loaded[token]) for token, place in held)
        if found >= _SHARE_LOADED * len(held):
            return
    raise BuildError(
        f"{source}: transformers reads {len(loaded)} tokens out of the tokenizer's files, which are not those of "
        f"{files[0]}; is its tokenizer_class the right one?"
    )


def _vocabulary(path: Path, source: str) -> Iterator[tuple[str, int | None]]:
    """A file's tokens and, where they are the model's own ids, their places."""
    if path.suffix == ".model":
        yield from _pieces(path, source)
    elif path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() would cut within some tokens
        except (OSError, UnicodeDecodeError) as error:
            raise BuildError(f"{source}: {path.name} is no list of tokens ({first_line(error)})") from error
        yield from {line: place for place, line in enumerate(lines) if line}.items()
    else:
        content: Any = read_json(path)
        if path.name == "tokenizer.json":
            model = content.get("model")
            content = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(content, dict):
            yield from content.items()
        elif isinstance(content, list):
            yield from ((str(row[0]), place) for place, row in enumerate(content) if isinstance(row, list) and row)


def _pieces(path: Path, source: str) -> Iterator[tuple[str, int | None]]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.Load(str(path))
        size = processor.GetPieceSize()
    except Exception as error:  # RuntimeError or OSError, by version
        raise BuildError(f"{source}: {path.name} is damaged ({first_line(error)}); copy it again") from error
    # XLM-RoBERTa's and CamemBERT's models place them otherwise than the file does.
    yield from ((processor.IdToPiece(place), None) for place in range(size))


def check_tokenizer(tokenizer: Any, config: Any, task: str, longest: int, source: str) -> None:
    """Raises BuildError where the model cannot read what the tokenizer makes, the task's tokens are missing, or
    ``longest`` tokens leave no room for a text."""
    rows = config.vocab_size
    token, last = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if last >= rows:
        raise BuildError(
            f"{source}: the tokenizer's {token!r} has id {last}, but the embedding table has {rows} rows (vocab_size)"
        )
    if tokenizer.pad_token_id is None and config.pad_token_id is None:
        raise BuildError(f"{source}: neither the tokenizer nor config.json names a pad token")
    if task == "fill_mask" and tokenizer.mask_token_id in (None, tokenizer.unk_token_id):
        raise BuildError(f"{source}: the tokenizer has no mask token, which fill_mask needs")
    _check_special(tokenizer, task, source)
    special = tokenizer.num_special_tokens_to_add(pair=task in _PAIR_TASKS)
    if longest <= special:
        raise BuildError(
            f"{source}: {longest} tokens at most (max_length, model_max_length or max_position_embeddings) leave no "
            f"room for a text beside {special} special ones"
        )
    _check_known(tokenizer, source)


def _check_special(tokenizer: Any, task: str, source: str) -> None:
    try:
        empty, one, pair = (tokenizer(*texts).input_ids for texts in (("",), ("a",), ("a", "a")))
    except Exception as error:  # the library raises Exception itself
        raise BuildError(f"{source}: the tokenizer fails on the text 'a' ({first_line(error)})") from error
    special = set(tokenizer.all_special_ids) | set(empty)
    if not empty:
        raise BuildError(
            f"{source}: the tokenizer puts neither [CLS] nor [SEP] around a text: an empty one has no token"
        )
    if task in _FIRST_TOKEN_TASKS and one[0] not in special:
        raise BuildError(f"{source}: the tokenizer puts no [CLS] before a text, which {task} reads")
    if task in _PAIR_TASKS and len(pair) - 2 * (len(one) - len(empty)) < 2:
        raise BuildError(f"{source}: the tokenizer puts no [SEP] between the two texts of a pair, which {task} needs")


def _check_known(tokenizer: Any, source: str) -> None:
    """Of the text it knows best; there are tokenizers of one script, and of proteins."""
    unknown = tokenizer.unk_token_id
    best = 1.0
    for texts in BY_SCRIPT.values():
        try:
            ids = [index for text in texts for index in tokenizer(text, add_special_tokens=False).input_ids]
        except Exception as error:  # such as a vocabulary without the unknown token that its model names
            raise BuildError(f"{source}: the tokenizer fails on {texts[0]!r} ({first_line(error)})") from error
        best = min(best, sum(index == unknown for index in ids) / len(ids) if ids else 1.0)
    if best > _SHARE_UNKNOWN:
        raise BuildError(
            f"{source}: the tokenizer answers {tokenizer.unk_token} to {best:.0%} of the words of every script; "
            "are its files those of this checkpoint?"
        )


def stated_length(folder: Path, source: str) -> int | None:
    """``model_max_length`` of tokenizer_config.json, in tokens with special ones; None where it bounds nothing.

    Raises BuildError for a value that is no length.
    """
    path = folder / "tokenizer_config.json"
    stated = read_json(path).get("model_max_length") if path.is_file() else None
    if stated is None:
        return None
    if isinstance(stated, bool) or not isinstance(stated, int | float) or not stated >= 1:
        raise BuildError(
            f"{source}: tokenizer_config.json: model_max_length is {stated!r}; a number of tokens belongs there"
        )
    return None if stated >= _LONGEST else int(stated)
