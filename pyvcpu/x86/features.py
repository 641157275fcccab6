"""CPU features by the names that /proc/cpuinfo has for them: where CPUID shows each, and which needs which.

Bits: SDM vol. 2A, CPUID; APM vol. 3, appendix E. Names: Linux, arch/x86/include/asm/cpufeatures.h, and QEMU's where
Linux shows a bit under no name of its own. Needs: arch/x86/kernel/cpu/cpuid-deps.c.
"""

from __future__ import annotations

from ..errors import ConfigError
from .cpuid import EAX, EBX, ECX, EDX

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Collection, Iterable

    from .cpuid import Leaves

    Word = tuple[int, int, int]  # function, index, register

# From bit 0 up; - for bits without a name, which nobody can ask for. OSXSAVE and OSPKE belong to the operating system.
_WORDS: dict[tuple[int, int, int], str] = {
    (0x1, 0, EDX): """
        fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov
        pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe""",
    (0x1, 0, ECX): """
        pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm
        - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave - avx f16c rdrand hypervisor""",
    (0x6, 0, EAX): "dtherm ida arat - pln - pts hwp hwp_notify hwp_act_window hwp_epp hwp_pkg_req",
    (0x7, 0, EBX): """
        fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a
        avx512f avx512dq rdseed adx smap avx512ifma - clflushopt
        clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl""",
    (0x7, 0, ECX): """
        prefetchwt1 avx512vbmi umip pku - waitpkg avx512_vbmi2 shstk
        gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq -
        la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks""",
    (0x7, 0, EDX): """
        - - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort
        - tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr
        ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp
        flush_l1d arch_capabilities core_capabilities spec_ctrl_ssbd""",
    (0x7, 1, EAX): """
        sha512 sm3 sm4 - avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc - - -
        - fred lkgs wrmsrns nmi_src amx_fp16 hreset avx_ifma - - lam msrlist""",
    (0x7, 1, EDX): "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - - prefetchiti",
    (0x7, 2, EDX): "intel_psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no",
    (0xD, 1, EAX): "xsaveopt xsavec xgetbv1 xsaves xfd",
    (0x8000_0001, 0, EDX): """
        - - - - - - - - - - - syscall - - - -
        - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow""",
    (0x8000_0001, 0, ECX): """
        lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp
        fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx""",
    (0x8000_0007, 0, EDX): "- - - - - - - - invtsc cpb - aperfmperf",
    (0x8000_0008, 0, EBX): """
        clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp
        - amd_stibp_always_on - - - - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no - brs""",
    (0x8000_000A, 0, EDX): """
        npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - - pausefilter - pfthreshold avic
        - v_vmsave_vmload vgif - - - v_spec_ctrl - - - - vnmi""",
    (0x8000_0021, 0, EAX): "no_nested_data_bp - lfence_rdtsc - - - null_sel_clr_base - autoibrs no_smm_ctl_msr",
}

NAMES: dict[Word, dict[int, str]] = {
    word: {bit: name for bit, name in enumerate(names.split()) if name != "-"} for word, names in _WORDS.items()
}
PLACE: dict[str, tuple[Word, int]] = {name: (word, bit) for word, names in NAMES.items() for bit, name in names.items()}
# Other names that are in use: manuals', compilers', QEMU's.
ALIASES = {
    "sse3": "pni",
    "lzcnt": "abm",
    "lahf": "lahf_lm",
    "sha": "sha_ni",
    "sse41": "sse4_1",
    "sse42": "sse4_2",
    "tsc_deadline": "tsc_deadline_timer",
    "nonstop_tsc": "invtsc",
    "constant_tsc": "invtsc",
    "osfxsr": "fxsr",
    "cmpxchg8b": "cx8",
    "cmpxchg16b": "cx16",
    "cr8legacy": "cr8_legacy",
    "xd": "nx",
    "ffxsr": "fxsr_opt",
    "user_shstk": "shstk",
    "ibpb": "amd_ibpb",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bitalg": "avx512_bitalg",
    "svme": "svm",
}

# A feature, and what it is nothing without.
_NEEDS = """
    fxsr:fpu mmx:fxsr cmov:fxsr mmxext:mmx 3dnow:mmx 3dnowext:3dnow fxsr_opt:fxsr sse:fxsr sse2:sse
    pni:sse2 ssse3:pni sse4_1:ssse3 sse4_2:sse4_1 sse4a:pni misalignsse:sse pclmulqdq:sse2 aes:sse2 sha_ni:sse2
    gfni:sse2 xsave:fxsr xsaveopt:xsave xsavec:xsave xsaves:xsave xgetbv1:xsave avx:xsave pku:xsave mpx:xsave
    fma:avx f16c:avx f16c:sse2 avx2:avx fma4:avx xop:avx vaes:avx vpclmulqdq:avx
    avx_vnni:avx2 avx_ifma:avx2 avx_vnni_int8:avx2 avx_vnni_int16:avx2 avx_ne_convert:avx2 sha512:avx2 sm3:avx sm4:avx2
    avx512f:avx2 avx512cd:avx512f avx512pf:avx512f avx512er:avx512f avx512dq:avx512f avx512bw:avx512f
    avx512vl:avx512f avx512ifma:avx512f avx512vbmi:avx512bw avx512_vbmi2:avx512bw avx512_vbmi2:avx512vl
    avx512_vnni:avx512vl avx512_bitalg:avx512bw avx512_bitalg:avx512vl avx512_vpopcntdq:avx512f
    avx512_4vnniw:avx512f avx512_4fmaps:avx512f avx512_vp2intersect:avx512vl avx512_bf16:avx512vl avx512_fp16:avx512bw
    xfd:xsaves xfd:xgetbv1 amx_tile:xfd amx_int8:amx_tile amx_bf16:amx_tile amx_fp16:amx_tile amx_complex:amx_tile
    shstk:xsaves ibt:xsaves enqcmd:xsaves arch_lbr:xsaves fred:lkgs lkgs:lm
    pae:cx8 lm:pae lahf_lm:lm cx16:lm pcid:lm la57:lm fsgsbase:lm pdpe1gb:lm lam:lm rdtscp:tsc
    nx:pae pse36:pse tsc_adjust:tsc tsc_deadline_timer:tsc invtsc:tsc x2apic:apic tsc_deadline_timer:apic
    mca:mce lass:smap sgx_lc:sgx clflushopt:clflush clwb:clflush spec_ctrl_ssbd:spec_ctrl
    npt:svm lbrv:svm svm_lock:svm nrip_save:svm tsc_scale:svm vmcb_clean:svm flushbyasid:svm decodeassists:svm
    pausefilter:svm pfthreshold:svm avic:svm v_vmsave_vmload:svm vgif:svm v_spec_ctrl:svm vnmi:svm
"""
NEEDS: dict[str, set[str]] = {}
NEEDED_BY: dict[str, set[str]] = {}
for _pair in _NEEDS.split():
    _name, _, _need = _pair.partition(":")
    NEEDS.setdefault(_name, set()).add(_need)
    NEEDED_BY.setdefault(_need, set()).add(_name)

# Leaf 0x80000001 EDX repeats these bits of leaf 1 EDX on AMD's processors (APM vol. 3, appendix E.4.2).
AMD_ALIASES = 0x0183_F3FF


def canonical(name: str) -> str | None:
    """Return the feature's own name for any of its names, in any spelling; None for no feature."""
    plain = name.lower().replace("-", "_").replace(".", "_")
    plain = ALIASES.get(plain) or ALIASES.get(plain.replace("_", "")) or plain
    return plain if plain in PLACE else None


def closure(names: Iterable[str], relation: dict[str, set[str]]) -> set[str]:
    """Return `names` and all that `relation` leads to from them.

    >>> sorted(closure(["avx2"], NEEDS))
    ['avx', 'avx2', 'fpu', 'fxsr', 'xsave']
    """
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += relation.get(name, ())
    return found


def has(leaves: Leaves, name: str) -> bool:
    """Tell whether `leaves` show a feature."""
    (function, index, register), bit = PLACE[name]
    return bool(leaves.read(function, register, index) >> bit & 1)


def put(leaves: Leaves, names: Iterable[str], on: bool) -> None:
    """Show or hide features, and nothing of what they need or what needs them."""
    for name in names:
        (function, index, register), bit = PLACE[name]
        if on or (function, index) in leaves.entries:
            leaves.change(function, register, 1 << bit, on << bit, index)


def shown(leaves: Leaves) -> list[str]:
    """Return the names of the features that `leaves` show, in the order of the leaves."""
    return [
        name
        for (function, index, register), names in NAMES.items()
        for bit, name in names.items()
        if leaves.read(function, register, index) >> bit & 1
    ]


def refuse_contradiction(plus: Collection[str], minus: Collection[str]) -> None:
    """Raise ConfigError when a feature is to be on that needs one that is to be off."""
    for name in sorted(plus):
        for off in sorted(closure([name], NEEDS) & set(minus)):
            why = "is turned on and off" if off == name else f"needs {off}, which -{off} turns off"
            raise ConfigError(f"--cpu contradicts itself: {name} {why}")
