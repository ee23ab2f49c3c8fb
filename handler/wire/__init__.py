"""The protocols: what requests and answers look like on the wire. They know no server and no model.

A protocol reads a body into the engine's requests and writes their outcomes, or an error, in its own form.
"""

from handler.wire.base import Asked, HttpReply, Outcome, Protocol, View, WireError
from handler.wire.kserve import KServeV1, KServeV2
from handler.wire.openai import Embeddings
from handler.wire.own import Own
from handler.wire.rerank import Rerank

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol for protocol in (Own(), Embeddings(), Rerank(), KServeV1(), KServeV2())
}
"""By name."""

__all__ = ["PROTOCOLS", "Asked", "HttpReply", "Outcome", "Protocol", "View", "WireError"]
