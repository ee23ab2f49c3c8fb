"""Requests and answers of every task. ``docs/openapi.yaml`` is generated from these models."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from handler.config import Aggregation, HypothesisTemplate, Output, ScoreFunction, SparseKeys, Truncation

Text = Annotated[str, Field(min_length=1)]
Prompt = Annotated[str, Field(max_length=4_000)]


class Request(BaseModel):
    """One input of one task. Fields beyond the texts are options; absent ones follow the setup config."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    truncation: Truncation | None = None
    adapter: str | None = None
    """Of an archive of several adapters the one that answers; None: the first one."""
    read_together: ClassVar[tuple[str, str] | None] = None
    """The field whose text is read once for each text of the other field."""
    taken: ClassVar[str] = '{"text": "..."}'
    """One input as JSON, for the messages that say what to send."""


class TextRequest(Request):
    """A text."""

    text: Text


class ClassificationRequest(TextRequest):
    """A text, or a pair of texts, to label."""

    text_pair: Text | None = None
    target: int | str | None = None
    """The label to explain, by index or by name; predictions ignore it."""
    top_k: Annotated[int, Field(gt=0)] | None = None
    function_to_apply: ScoreFunction | None = None
    """What makes scores of the model's outputs."""


def _parted(value: Any) -> Any:
    """Labels in one text, with commas between them, as transformers' pipeline takes them."""
    return [label for part in value.split(",") if (label := part.strip())] if isinstance(value, str) else value


Labels = Annotated[list[Text], Field(min_length=1), BeforeValidator(_parted)]


class ZeroShotRequest(TextRequest):
    """A text, and the labels to choose from."""

    taken = '{"text": "...", "candidate_labels": ["...", "..."]}'
    read_together = ("text", "candidate_labels")

    candidate_labels: Labels | None = None
    """A list, or one text with commas between the labels; the setup config may have some."""
    hypothesis_template: HypothesisTemplate | None = None
    """What is claimed of the text, with {} where a label goes."""
    multi_label: bool | None = None
    """Whether several labels may be true, so that each has a probability of its own."""


class QuestionRequest(Request):
    """A question and the text to answer it from."""

    taken = '{"question": "...", "context": "..."}'

    question: Text
    context: Text
    n_best: Annotated[int, Field(gt=0, le=100)] | None = None
    max_answer_length: Annotated[int, Field(gt=0, le=512)] | None = None
    null_threshold: float | None = None
    align_to_words: bool | None = None
    """Whether answers are cut at words or at the model's tokens."""
    stride: Annotated[int, Field(ge=0)] | None = None


class TokenRequest(TextRequest):
    """A text whose entities are wanted."""

    aggregation: Aggregation | None = None
    target: int | str | None = None


class PromptedRequest(Request):
    """A text that may have another before it."""

    prompt: Prompt | None = None
    """A text to put before the text; "" for none."""
    prompt_name: str | None = None
    """One of the model's prompts, unless ``prompt`` is given."""
    input_type: Literal["query", "document"] | None = None
    """The model's prompt for this kind of text, unless ``prompt`` or ``prompt_name`` is given."""


class EmbeddingRequest(PromptedRequest, TextRequest):
    """A text to embed."""

    normalize: bool | None = None
    dimensions: Annotated[int, Field(gt=0)] | None = None
    precision: Literal["float32", "float16", "int8", "binary", "ubinary"] | None = None
    """Of the vector's numbers; int8 comes with a ``scale``, binary and ubinary are eight dimensions in a byte."""
    encoding_format: Literal["float", "base64"] | None = None
    """A list of numbers, or base64 of their bytes in little-endian order."""


class SparseRequest(PromptedRequest, TextRequest):
    """A text to embed in few of very many dimensions, each of which is a token."""

    top_k: Annotated[int, Field(gt=0)] | None = None
    """The heaviest so many alone."""
    sparse_keys: SparseKeys | None = None
    """Whether weights stand under tokens or under their ids."""


class MultiVectorRequest(PromptedRequest):
    """A text to embed token by token; or a query and texts to order by their relevance to it."""

    taken = '{"text": "..."} or {"query": "...", "texts": ["...", "..."]}'

    text: Text | None = None
    query: Text | None = None
    texts: Annotated[list[Text], Field(min_length=1)] | None = None
    sort: bool = True
    """Best first; otherwise in the order of ``texts``."""
    return_text: bool = False

    @model_validator(mode="after")
    def _one_of_two(self) -> MultiVectorRequest:
        if (self.text is None) == (self.query is None) or (self.query is None) != (self.texts is None):
            raise ValueError("give either text, or query and texts")
        return self


class HybridRequest(EmbeddingRequest, SparseRequest):
    """A text to embed in several ways in one pass."""

    outputs: Annotated[list[Output], Field(min_length=1)] | None = None
    """Which of the archive's outputs are wanted; None: all."""


class RerankRequest(Request):
    """A query and the texts to order by their relevance to it."""

    read_together = ("query", "texts")
    taken = '{"query": "...", "texts": ["...", "..."]}'

    query: Text
    texts: Annotated[list[Text], Field(min_length=1)]
    sort: bool = True
    """Best first; otherwise in the order of ``texts``."""
    raw_scores: bool = False
    """Logits, without the model's activation."""
    return_text: bool = False
    prompt: Prompt | None = None
    """A text to put before the query; "" for none."""
    prompt_name: str | None = None
    """One of the model's prompts, unless ``prompt`` is given."""


class FillMaskRequest(TextRequest):
    """A text with one or more mask tokens."""

    top_k: Annotated[int, Field(gt=0, le=1000)] | None = None


class Answer(BaseModel):
    """What every answer may hold."""

    dropped_tokens: int | None = None
    """How many tokens truncation cut off; absent where none were."""


class LabelScore(BaseModel):
    """A label and its score."""

    label: str
    score: float


class ClassificationAnswer(Answer, LabelScore):
    """The best label and its score."""

    labels: list[LabelScore] | None = None
    """The ``top_k`` best, or every label of a multi-label model; best first."""


class ZeroShotAnswer(Answer):
    """The candidate labels, best first, and their probabilities in the same order."""

    labels: list[str]
    scores: list[float]


class Span(BaseModel):
    """``context[start:end] == answer``; offsets count unicode code points."""

    answer: str
    score: float
    start: int
    end: int


class QuestionAnswer(Answer, Span):
    """An empty answer at 0, 0 means that the context holds none."""

    no_answer_score: float | None = None
    answers: list[Span] | None = None
    """The ``n_best`` best, when more than one was asked for."""


class Entity(BaseModel):
    """``text[start:end]`` is the entity; ``index`` is the token's position where nothing was joined."""

    label: str
    score: float
    word: str
    start: int
    end: int
    index: int | None = None


class TokenAnswer(Answer):
    """The entities of a text, in its order."""

    entities: list[Entity]


class EmbeddingAnswer(Answer):
    """A text's vector."""

    embedding: list[float] | str
    """Text where ``encoding_format`` is base64."""
    scale: float | None = None
    """What int8 numbers are multiplied by."""


class SparseAnswer(Answer):
    """A text's weights by token (or by its id), heaviest first; what is not there is 0."""

    sparse_embedding: dict[str, float]


class Ranked(BaseModel):
    """One text of a rerank request, by its place in it."""

    index: int
    score: float
    text: str | None = None
    """The text itself, where ``return_text`` asks for it."""


class RerankAnswer(Answer):
    """A score for every text."""

    results: list[Ranked]


class MultiVectorAnswer(Answer):
    """A text's vectors, one for each token that counts; or a score for every text."""

    token_embeddings: list[list[float]] | None = None
    results: list[Ranked] | None = None


class HybridAnswer(Answer):
    """The outputs that were asked for."""

    embedding: list[float] | str | None = None
    scale: float | None = None
    sparse_embedding: dict[str, float] | None = None
    token_embeddings: list[list[float]] | None = None


class Candidate(BaseModel):
    """A token that may stand in a mask's place."""

    token: str
    token_id: int
    score: float
    sequence: str
    """The text with the mask replaced by the token."""


class FillMaskAnswer(Answer):
    """What may stand in the masks' places."""

    masks: list[list[Candidate]]
    """For each mask of the text, its candidates, best first."""


class ErrorDetail(BaseModel):
    """What was wrong with a request, or with one input of a list."""

    type: str
    message: str
    field: str | None


class ServerErrorAnswer(BaseModel):
    """TorchServe's own errors: no token, no such model, a full queue, a body larger than the server allows."""

    code: int
    type: str
    message: str


class ErrorAnswer(BaseModel):
    """The body of every reply that is no answer."""

    error: ErrorDetail
