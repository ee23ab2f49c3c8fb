"""Encoders beyond BERT's kin on a GPU, random weights of their base models' sizes: ours beside its strongest peers.

``python -m benchmarks.gpu.families`` prints a line for each workload and writes a JSON file. Peers:

*flash*: plain PyTorch on packed tokens as transformers runs ModernBERT unpadded, flash attention with cumulative
lengths and windows, each layer compiled, all layers in one CUDA graph; *flash eager launches*: the same without it.
*eager* and *compiled*: the model of transformers itself on the padded batch, the latter by torch.compile for each shape
and captured in a CUDA graph; what is not compiled within ``--compile-seconds`` is named and left out.
*all global*: ours with every layer's window taken away, what windows save.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import libraries, machine, results
from benchmarks.measuring import first_line
from benchmarks.timing import Call, captured, interleave
from benchmarks.workloads import Batch, make_batch, make_workload
from builder.families import EncoderSpec
from builder.slots import slots
from tests.kernels import families
from tests.kernels.reference import Weights

MODELS = {
    "modernbert": EncoderSpec(
        22, 768, 12, 1152, norm="pre", epsilon=1e-5, positions="none", types=False, first_norm=False, gated=True,
        rotary="halves", window=64, local="".join("0" if i % 3 == 0 else "1" for i in range(22)),
    ),
    "deberta": EncoderSpec(
        12, 768, 12, 3072, epsilon=1e-7, positions="none", types=False, relative="disentangled", buckets=256,
        distance=512, c2p=True, p2c=True,
    ),
    "mpnet": EncoderSpec(
        12, 768, 12, 3072, positions="ids", pad=1, types=False, relative="buckets", buckets=32, distance=128
    ),
}  # fmt: skip
SIZES = ("1x128", "8x384", "1x8192")
WORDS = 30_000
"""Of each vocabulary: which rows are read does not matter, how many there are does not either."""


class Ours:
    """The operator on prepared weights."""

    def __init__(self, spec: EncoderSpec, weights: Weights) -> None:
        self.text = spec.text()
        tensors = [getattr(weights, name).cuda() for name in Weights.__dataclass_fields__]
        self.weights = torch.ops.efft.prepare_weights(tensors, self.text)

    def bind(self, batch: Batch) -> Call:
        """A call that returns hidden states in the padded shape."""
        return lambda: torch.ops.efft.encode(batch.ids, batch.segments, batch.mask, self.weights, self.text, "hidden")


class Flash:
    """ModernBERT on packed tokens in plain PyTorch."""

    def __init__(self, spec: EncoderSpec, weights: Weights) -> None:
        self.spec = spec
        found = {slot.name: slot for slot in slots(spec)}
        arenas = {"matrix": weights.matrices.cuda(), "vector": weights.vectors.cuda()}
        of = {name: slot.of(arenas[slot.kind]) for name, slot in found.items() if slot.kind in arenas}
        dtype = weights.word.dtype
        self.weights = {name: value if "rotary" in name else value.to(dtype) for name, value in of.items()}
        self.word = weights.word.cuda()
        self.attend: Callable[..., Tensor] = _flash_attention
        torch._dynamo.config.recompile_limit = 64  # one for each shape, window and norm
        self.layer = torch.compile(self._layer, dynamic=False)

    def bind(self, batch: Batch, graph: bool = True) -> Call:
        """A call that returns packed hidden states, or replays a graph of it."""
        keep = batch.mask.flatten().nonzero().flatten()
        ids = batch.ids.flatten()[keep]
        lengths = batch.mask.sum(1)
        ends = F.pad(lengths.cumsum(0), (1, 0)).int()
        longest = int(lengths.max())
        ranks = torch.cat([torch.arange(int(n), device="cuda") for n in lengths])
        turns = {}
        for local in (False, True):
            angles = ranks.float()[:, None] * self.weights["rotary_local" if local else "rotary"]
            turns[local] = [part.to(self.word.dtype) for part in (angles.cos(), angles.sin())]

        def call() -> Tensor:
            with torch.inference_mode():
                x = self._norm("embedding_norm", F.embedding(ids, self.word))
                for layer in range(self.spec.layers):
                    local = self.spec.local[layer : layer + 1] == "1"
                    window = self.spec.window if local else -1
                    x = self.layer(x, *self._layer_weights(layer), *turns[local], ends, longest, window)
                return self._norm("final_norm", x)

        call()
        return captured(call) if graph else call

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.gamma"], None, self.spec.epsilon)

    def _layer_weights(self, layer: int) -> list[Tensor | None]:
        names = ("attention_norm.gamma", "qkv", "attention_output", "output_norm.gamma", "intermediate", "output")
        return [self.weights.get(f"{layer}.{name}") for name in names]

    def _layer(self, x, norm, qkv, out, second_norm, up, down, cosine, sine, ends, longest, window) -> Tensor:
        spec = self.spec
        y = x if norm is None else F.layer_norm(x, x.shape[-1:], norm, None, spec.epsilon)
        q, k, v = F.linear(y, qkv).view(x.shape[0], 3, spec.heads, -1).unbind(1)
        cosine, sine = cosine[:, None], sine[:, None]

        def turn(part: Tensor) -> Tensor:
            a, b = part.chunk(2, -1)
            return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)

        attended = self.attend(turn(q), turn(k), v, ends, longest, window)
        x = x + F.linear(attended.reshape(x.shape[0], -1), out)
        gate, value = F.linear(F.layer_norm(x, x.shape[-1:], second_norm, None, spec.epsilon), up).chunk(2, -1)
        return x + F.linear(F.gelu(gate) * value, down)


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int, window: int) -> Tensor:
    sizes = {"window_size_left": window, "window_size_right": window} if window >= 0 else {}
    return torch.ops.aten._flash_attention_forward(
        q.contiguous(), k.contiguous(), v.contiguous(), ends, ends, longest, longest, 0.0, False, False, **sizes
    )[0]


def _transformers(name: str, dtype: torch.dtype) -> Any:
    """The model of transformers with the same sizes, random weights."""
    import transformers

    if name == "modernbert":
        config = transformers.ModernBertConfig(attn_implementation="sdpa")
        model = transformers.ModernBertModel(config)
    elif name == "deberta":
        config = transformers.DebertaV2Config(
            vocab_size=WORDS, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
            relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True,
            pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0, max_position_embeddings=8192,
            max_relative_positions=512,
        )  # fmt: skip
        model = transformers.DebertaV2Model(config)
    else:
        model = transformers.MPNetModel(transformers.MPNetConfig(vocab_size=WORDS))
    return model.to("cuda", dtype).eval()


def _padded(model: Any, batch: Batch) -> Call:
    def call() -> Tensor:
        with torch.inference_mode():
            return model(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state

    return call


class _TooSlow(BaseException):
    """Not an Exception: the compiler would take it for an error of the model's and say that instead."""


@contextmanager
def _within(seconds: int, what: str) -> Iterator[None]:
    """Ends what takes longer, even where it waits for a compiler's processes. Raises TimeoutError."""

    def late(*_: object) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    except _TooSlow:
        raise TimeoutError(f"{what} took longer than {seconds} s") from None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _compiled(model: Any, batch: Batch, seconds: int) -> Call | None:
    """A replay of the compiled model on a batch; None, having said why, where there is none."""
    torch._dynamo.config.recompile_limit = 64  # one for each shape
    try:
        with _within(seconds, "compiling"):
            call = _padded(torch.compile(model, dynamic=False), batch)
            call()
            try:
                return captured(call)
            except RuntimeError as error:  # a model may ask the device something on its way
                print(f"compiled: not captured, launched one by one: {first_line(error)}")
                return call
    except Exception as error:  # whatever a compiler raises
        print(f"compiled left out: {first_line(error)}")
        return None


def _error(output: Tensor, batch: Batch, truth: Tensor) -> float:
    """The largest distance, relative to the largest element."""
    valid = output[batch.mask.bool()].float()
    return float((valid - truth.float()).abs().max() / truth.float().abs().max())


def _truth(spec: EncoderSpec, weights: Weights, batch: Batch) -> Tensor:
    """In fp32 through plain PyTorch, for batches whose scores fit."""
    held = Weights(*(getattr(weights, name).cuda() for name in Weights.__dataclass_fields__)).to(torch.float32)
    with torch.device("cuda"), torch.inference_mode():
        return families.encoder(batch.ids, batch.segments, batch.mask, held, spec)[batch.mask.bool()]


def measure(
    name: str, dtype: torch.dtype, sizes: tuple[str, ...], peers: tuple[str, ...], seconds: int
) -> Iterator[dict[str, Any]]:
    """A row for each workload: milliseconds of ours and of each peer, ours' error against fp32. ``seconds``: most that
    compiling transformers' model for one workload may take."""
    spec = MODELS[name]
    weights = families.random_weights(spec, torch.Generator().manual_seed(0), words=WORDS, positions=8300).to(dtype)
    ours = Ours(spec, weights)
    flash = Flash(spec, weights) if name == "modernbert" and "flash" in peers else None
    model = _transformers(name, dtype) if {"eager", "compiled"} & set(peers) else None
    for size in sizes:
        batch = make_batch(make_workload(size, "rand_r"), WORDS, "cuda")
        calls: dict[str, Call] = {"ours": ours.bind(batch)}
        if spec.local and size == SIZES[-1]:
            calls["all global"] = Ours(replace(spec, local="", window=0), _without_local(spec, weights)).bind(batch)
        if flash is not None:
            calls["flash"] = flash.bind(batch)
            calls["flash eager launches"] = flash.bind(batch, graph=False)
        if model is not None and "eager" in peers:
            calls["eager"] = _padded(model, batch)
        if model is not None and "compiled" in peers and (compiled := _compiled(model, batch, seconds)) is not None:
            calls["compiled"] = compiled
        calls = {peer: call for peer, call in calls.items() if _runs(peer, call)}
        times = {peer: timing.median for peer, timing in interleave(calls, 0.04, 3).items()}
        output = ours.bind(batch)()
        assert isinstance(output, Tensor)
        truth = _truth(spec, weights, batch)
        row = {"model": name, "type": str(dtype), "workload": size, "milliseconds": times}
        row["error"] = _error(output, batch, truth)
        print(f"{name:10} {size:7} error {row['error']:.1e}  ", end="")
        print("  ".join(f"{peer} {t:.3f} ({t / times['ours']:.2f} x)" for peer, t in times.items()), flush=True)
        yield row
        torch.cuda.empty_cache()


def _without_local(spec: EncoderSpec, weights: Weights) -> Weights:
    """The same weights without the local layers' frequencies, in the order of the other spec's slots."""
    found = {slot.name: slot for slot in slots(spec)}
    kept = [slot for slot in slots(replace(spec, local="", window=0)) if slot.kind == "vector"]
    return replace(weights, vectors=torch.cat([found[slot.name].of(weights.vectors) for slot in kept]))


def _runs(name: str, call: Call) -> bool:
    try:
        call()
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"{name} left out: {first_line(error)}")
        return False
    return True


def main() -> int:
    """Measure; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.families", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--peers", nargs="*", choices=("flash", "eager", "compiled"), default=["flash", "eager"])
    parser.add_argument("--compile-seconds", type=int, default=60, help="most that one compilation may take")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")
    options = parser.parse_args()
    libraries.load("cuda")
    facts = machine.facts("cuda", machine.threads_available())
    rows: list[dict[str, Any]] = []
    for name in options.models:
        sizes, peers = tuple(options.sizes), tuple(options.peers)
        for row in measure(name, torch.float16, sizes, peers, options.compile_seconds):
            rows.append(row)
            path = results.save("families", {**facts, "rows": rows}, options.output)
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
