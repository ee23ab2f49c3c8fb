"""A fast form of ESM's tokenizer, which transformers has in Python only.

That one cuts a text at every token of its vocabulary, the longest first, and at white space; what is left between is
one unknown token. The same as a pattern for the tokenizers library is compared with it on texts before it is used.
"""

from __future__ import annotations

import re
from typing import Any

from builder.errors import BuildError
from builder.gate.texts import BY_SCRIPT, ODD

_SPACE = r"[\s\x1c-\x1f\x85]+"
"""What Python's ``str.split`` cuts at."""
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_PROBES = (
    "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ", "M K T <mask> Y", "mktayiak", "MK<mask>TAY<eos>A", "M.K-T", "<cls>MK <pad>",
    "MKT9AY??IA", "  MK\n\tTA ", "XBUZO", "<null_1>M<unk>K",
)  # fmt: skip


def is_protein(tokenizer: Any) -> bool:
    """Whether it is the one that :func:`fast_form` is for."""
    return type(tokenizer).__name__ == "EsmTokenizer"


def fast_form(slow: Any, source: str) -> Any:
    """The tokenizers library's form of an ``EsmTokenizer``. Raises BuildError where the two do not agree on a text."""
    import transformers

    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_backend(slow),
        model_max_length=slow.model_max_length,
        model_input_names=list(slow.model_input_names),
        truncation_side=slow.truncation_side,
        **{f"{role}_token": token for role in _ROLES if (token := getattr(slow, f"{role}_token")) is not None},
    )
    texts = [*_PROBES, *ODD, *(text for texts in BY_SCRIPT.values() for text in texts)]
    for text in texts:
        if made(text).input_ids != slow(text).input_ids or made(text, "MK").input_ids != slow(text, "MK").input_ids:
            raise BuildError(
                f"{source}: its tokenizer's fast form reads {text[:40]!r} otherwise than transformers does"
            )
    return made


def _backend(slow: Any) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors

    vocabulary = slow.get_vocab()
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=slow.unk_token))
    known = "|".join(re.escape(token) for token in sorted(vocabulary, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(known), "isolated"), pre_tokenizers.Split(Regex(_SPACE), "removed"),
    ])  # fmt: skip
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in slow.all_special_tokens])
    first, last = (slow.cls_token, slow.cls_token_id), (slow.eos_token, slow.eos_token_id)
    end = f" {last[0]}" if last[0] else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first[0]} $A{end}",
        pair=f"{first[0]} $A{end} $B{end}",
        special_tokens=[first, last] if end else [first],
    )
    return tokenizer
