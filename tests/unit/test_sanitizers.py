"""What the GPU check makes of compute-sanitizer's reports."""

from tests.gpu.sanitizers import judge

HAZARD = """========= Error: Race reported between Read access at {0}+0xa10
=========     and Write access at {1}+0x3ac0 [504 hazards]
=========
"""
CUBLASLT = "nvjet_sm90_hsh_224x64_64x5_2x1_v_bz_TNN"
OURS = "void efft::cuda::attention_resident_kernel<__half, 64, 1, 2>(Arguments)"


def racecheck(*pairs: tuple[str, str]) -> str:
    """A report of these hazards."""
    text = "".join(HAZARD.format(*pair) for pair in pairs)
    return f"{text}========= RACECHECK SUMMARY: {len(pairs)} hazards displayed ({len(pairs)} errors, 0 warnings)\n"


def test_clean_reports_pass() -> None:
    assert judge(racecheck(), 0).passed
    assert judge("========= ERROR SUMMARY: 0 errors\n", 0).passed


def test_hazards_within_cublaslt_pass_and_are_told() -> None:
    verdict = judge(racecheck((CUBLASLT, CUBLASLT), (CUBLASLT, CUBLASLT)), 0)
    assert verdict.passed
    assert verdict.summary == "2 findings, 2 of them within cuBLASLt's own kernels"


def test_a_hazard_of_ours_fails() -> None:
    assert not judge(racecheck((CUBLASLT, CUBLASLT), (OURS, OURS)), 0).passed
    assert not judge(racecheck((CUBLASLT, OURS)), 0).passed


def test_a_hazard_without_a_name_is_nobodys() -> None:
    report = (
        "========= Error: Race reported between Read access at \n=========     and Write access at  [504 hazards]\n"
    )
    verdict = judge(report + racecheck((CUBLASLT, CUBLASLT)).replace("1 hazards", "2 hazards"), 0)
    assert not verdict.passed
    assert verdict.nameless
    assert not judge(racecheck((CUBLASLT, OURS)), 0).nameless


def test_memory_errors_fail() -> None:
    assert not judge("========= Invalid __global__ read\n========= ERROR SUMMARY: 1 error\n", 0).passed


def test_a_run_cut_short_fails() -> None:
    assert not judge("", 0).passed
    assert not judge(racecheck(), 1).passed
    assert not judge("========= Internal Sanitizer Error: failed\n" + racecheck(), 0).passed
