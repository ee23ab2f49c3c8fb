"""Check and time the attention kernels on a GPU, apart from the operator library.

Build, then run on a machine with a GPU and torch::

    nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a --expt-relaxed-constexpr -Xcompiler -fPIC -shared \
        -I kernels/include kernels/lab/attention_lab.cu kernels/cuda/attention.cu -o libattention_lab.so
    python kernels/lab/attention_lab.py libattention_lab.so check time
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

POISON = 12345.0
ABSOLUTE_FLOOR = 1e-6
"""Where PyTorch's own error is zero (a sequence of one token) ours may still round once."""


def workload(batch: int, longest: int) -> list[int]:
    """Lengths uniform in [1, longest], from a fixed seed."""
    generator = torch.Generator().manual_seed(batch * 10007 + longest)
    return torch.randint(1, longest + 1, (batch,), generator=generator).tolist()


@dataclass
class Case:
    """One packed batch. ``spare`` rows beyond the last token stand for an unused part of the capacity: NaN."""

    lengths: Sequence[int]
    heads: int
    head_size: int
    dtype: torch.dtype
    bias: bool = True
    spare: int = 37
    offset: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator(device="cuda").manual_seed(sum(self.lengths) + self.head_size)
        self.tokens = sum(self.lengths)
        self.capacity = self.tokens + self.spare
        self.hidden = self.heads * self.head_size
        shape = (self.capacity, 3 * self.hidden)
        values = torch.randn(shape, generator=generator, device="cuda") * 1.5
        values[self.tokens :] = float("nan")
        flat = torch.empty(values.numel() + self.offset, dtype=self.dtype, device="cuda")[self.offset :]
        self.qkv = flat.view(shape).copy_(values)
        self.vector = torch.randn(3 * self.hidden, generator=generator, device="cuda") if self.bias else None
        self.cu_seqlens = torch.tensor([0, *self.lengths], device="cuda").cumsum(0).to(torch.int32)
        self.max_length = max(self.lengths, default=0)

    def poisoned(self) -> torch.Tensor:
        return torch.full((self.capacity, self.hidden), POISON, dtype=self.dtype, device="cuda")

    def sequences(self, dtype: torch.dtype) -> list[tuple[torch.Tensor, ...]]:
        """Query, key and value [1, heads, length, head_size] of each sequence that is not empty, bias added."""
        qkv = self.qkv[: self.tokens].double()
        if self.vector is not None:
            qkv = qkv + self.vector
        qkv = qkv.to(dtype).view(self.tokens, 3, self.heads, self.head_size)
        parts = qkv.split([n for n in self.lengths if n])
        return [tuple(t.transpose(0, 1)[None] for t in part.unbind(1)) for part in parts]

    def pack(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([o[0].transpose(0, 1).reshape(-1, self.hidden) for o in outputs])

    def reference(self) -> torch.Tensor:
        """float64, written out."""
        outputs = []
        for query, key, value in self.sequences(torch.float64):
            scores = query @ key.transpose(-1, -2) / self.head_size**0.5
            outputs.append(torch.softmax(scores, -1) @ value)
        return self.pack(outputs)

    def plain(self) -> torch.Tensor:
        """PyTorch's own attention at the case's type, without the backend that compiles a plan for every new shape."""
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            return self.pack([F.scaled_dot_product_attention(*qkv) for qkv in self.sequences(self.dtype)])


class Library:
    """The C functions of attention_lab.cu."""

    def __init__(self, path: str) -> None:
        self.library = ctypes.CDLL(path)

    def attention(self, case: Case, out: torch.Tensor, *, programmatic: bool = False, choice: int = 0) -> None:
        function = getattr(self.library, f"attention_{str(case.dtype).removeprefix('torch.')}")
        pointers = [ctypes.c_void_p(t.data_ptr() if t is not None else 0) for t in (case.qkv, case.vector)]
        sizes = (len(case.lengths), case.heads, case.head_size, case.max_length, case.capacity)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        error = function(
            *pointers, ctypes.c_void_p(case.cu_seqlens.data_ptr()), ctypes.c_void_p(out.data_ptr()), *sizes, stream,
            int(programmatic), choice,
        )  # fmt: skip
        if error:
            raise RuntimeError(f"attention returned cudaError {error} for {sizes}")


def check_case(library: Library, case: Case) -> str | None:
    """None, or what is wrong."""
    first, second = case.poisoned(), case.poisoned()
    library.attention(case, first)
    library.attention(case, second, programmatic=True)
    torch.cuda.synchronize()
    if not bool((first[case.tokens :] == POISON).all()):
        return "wrote rows beyond the last token"
    if not torch.equal(first, second):
        return "two runs differ"
    if not case.tokens:
        return None
    reference = case.reference()
    ours = (first[: case.tokens].double() - reference).abs()
    plain = (case.plain().double() - reference).abs()
    if not bool(ours.isfinite().all()):
        return "not finite"
    for name, error, bound in (("max", ours.max(), plain.max()), ("mean", ours.mean(), plain.mean())):
        if not error <= 2 * bound + ABSOLUTE_FLOOR:
            return f"{name} error {error:.3e}, PyTorch's {bound:.3e}"
    return None


def cases() -> list[Case]:
    half, bfloat, single = torch.float16, torch.bfloat16, torch.float32
    mixed = [1, 0, 0, 17, 64, 65, 128, 3, 129, 0, 200, 63, 1, 1, 384, 0]
    found = [
        Case(lengths, 12, head_size, dtype)
        for dtype in (half, bfloat, single)
        for head_size in (64, 32)
        for lengths in (
            [1],
            [32],
            [128],
            [384],
            mixed,
            workload(32, 31),
            workload(32, 128),
            workload(40, 70),
            [290],
            [700, 3],
        )
    ]
    for dtype in (half, bfloat, single):
        found += [Case(mixed, 3, head_size, dtype) for head_size in (2, 26, 40, 48, 80, 96, 100, 128)]
        found += [
            Case([4096, 1, 700], 2, 64, dtype),
            Case([1025], 2, 32, dtype),
            Case([1, 640, 4096], 1, 128, dtype),
            Case(mixed, 4, 64, dtype, bias=False, spare=0),
            Case(mixed, 4, 64, dtype, offset=2),
            Case([0, 0], 4, 64, dtype),
            Case(workload(32, 384), 12, 64, dtype),
            Case(SHAPES["8x384"][0], 12, 64, dtype),
            Case(workload(300, 40), 4, 64, dtype),
            Case(workload(300, 20), 12, 64, dtype),
        ]
    return found


def run_small(library: Library) -> None:
    """A few small cases without a reference, for compute-sanitizer."""
    mixed = [1, 0, 17, 64, 65, 130, 0]
    for dtype in (torch.float16, torch.float32):
        for lengths, heads, head_size in (
            ([33], 2, 64),
            (mixed, 2, 64),
            (mixed, 70, 64),
            (mixed, 2, 32),
            (mixed, 1, 40),
        ):
            case = Case(lengths, heads, head_size, dtype)
            library.attention(case, case.poisoned())
    torch.cuda.synchronize()


def check(library: Library) -> bool:
    failures = 0
    everything = cases()
    for case in everything:
        wrong = check_case(library, case)
        if wrong:
            failures += 1
            print(f"FAIL {case.dtype} head size {case.head_size} x {case.heads}, lengths {case.lengths[:8]}: {wrong}")
    print(f"check: {len(everything) - failures} of {len(everything)} cases right")
    return failures == 0


def microseconds(launch: Callable[[int], None], launches: int = 24, repeats: int = 15) -> float:
    """Median time of one launch, from replays of a graph of many; launch(i) is given its number."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        launch(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            launch(i)
    graph.replay()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / launches)
    return statistics.median(times)


def packed_peer(case: Case) -> Callable[[int], None]:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = case.qkv[: case.tokens].view(case.tokens, 3, case.heads, case.head_size).unbind(1)
    return lambda _: varlen_attn(q, k, v, case.cu_seqlens, case.cu_seqlens, case.max_length, case.max_length)


SHAPES = {
    "1x32": ([32], 12, 64), "1x128": ([128], 12, 64), "1x384": ([384], 12, 64),
    "8x128": ([4, 31, 90, 44, 95, 121, 16, 47], 12, 64),
    "8x384": ([260, 287, 218, 44, 351, 249, 272, 47], 12, 64),
}  # fmt: skip


def rand_r(seed: int) -> tuple[int, int]:
    """glibc's rand_r: (number, next seed)."""
    result = 0
    for shift, mask in ((0, 2047), (10, 1023), (10, 1023)):
        seed = (seed * 1103515245 + 12345) & 0xFFFFFFFF
        result = (result << shift) ^ ((seed >> 16) & mask)
    return result, seed


def drawn(batch: int, longest: int) -> list[int]:
    """Lengths as FasterTransformer's example draws them."""
    lengths, seed = [], 0
    for _ in range(batch):
        number, seed = rand_r(seed)
        lengths.append(max(1, number % longest))
    return lengths


def time(library: Library, dtype: torch.dtype, only: Sequence[str] = (), peers: bool = True) -> None:
    shapes = dict(SHAPES)
    for batch, longest in ((32, 32), (128, 32), (512, 16), (32, 128), (32, 384), (128, 384)):
        shapes[f"{batch}x{longest}"] = (drawn(batch, longest), 12, 64)
    shapes["large 32x384"] = (drawn(32, 384), 16, 64)
    shapes["MiniLM 32x384"] = (drawn(32, 384), 12, 32)
    shapes["1x4096"] = ([4096], 12, 64)
    for name, (lengths, heads, head_size) in shapes.items():
        if not only or name in only:
            print(f"{name:14s} {time_shape(library, dtype, lengths, heads, head_size, peers)}")


def time_shape(
    library: Library, dtype: torch.dtype, lengths: Sequence[int], heads: int, head_size: int, peers: bool
) -> str:
    """Microseconds of one launch: over one input (hot), over four in turn (cold), and launched programmatically."""
    spare = len(lengths) * max(lengths) - sum(lengths)
    sets = [Case(lengths, heads, head_size, dtype, spare=spare) for _ in range(4)]
    outs = [case.poisoned() for case in sets]
    hot = microseconds(lambda i: library.attention(sets[0], outs[0]))
    cold = microseconds(lambda i: library.attention(sets[i % 4], outs[i % 4]))
    chained = microseconds(lambda i: library.attention(sets[0], outs[0], programmatic=True))
    work = 4 * sum(n * n for n in lengths) * heads * head_size
    line = f"{sum(lengths):6d} tokens {work / 1e9:6.2f} GFLOP {work / hot / 1e6:5.0f} TFLOP/s | us "
    line += f"hot {hot:7.2f} cold {cold:7.2f} programmatic {chained:7.2f}"
    if peers:
        packed = microseconds(lambda i: library.attention(sets[0], outs[0], choice=1))
        line += f" | mma.sync {packed:7.2f} | torch varlen {microseconds(packed_peer(sets[0])):7.2f}"
    return line


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("steps", nargs="+", choices=["check", "small", "time"])
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--only", nargs="*", default=[], help="shapes to time, of all that `time` prints")
    parser.add_argument("--no-peers", action="store_true", help="time this library's own choice only")
    arguments = parser.parse_args()
    library = Library(arguments.library)
    right = check(library) if "check" in arguments.steps else True
    if "small" in arguments.steps:
        run_small(library)
    if "time" in arguments.steps:
        time(library, getattr(torch, arguments.dtype), arguments.only, not arguments.no_peers)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
