"""--cpu: what it says, what it refuses; features and what they need; models and the leaves that come of them."""

from __future__ import annotations

import pytest

from pyvcpu.errors import ConfigError
from pyvcpu.x86 import models
from pyvcpu.x86.cpu import Cpu, parse
from pyvcpu.x86.cpuid import EAX, EBX, ECX, EDX, XSAVE, Leaves
from pyvcpu.x86.features import NEEDED_BY, NEEDS, PLACE, canonical, closure, has, put, shown

BAD = [
    ("", "starts with a model"),
    ("hoost", "not 'hoost'; did you mean host?"),
    ("x86-64-v5", "did you mean x86-64-v4?"),
    ("Skylake", "one of host, x86-64-v1"),
    ("+avx2", r"did you mean host,\+avx2\?"),
    ("kvm=off", "did you mean host,kvm=off?"),
    ("host,avx2", r"did you mean \+avx2\?"),
    ("host,avx2=off", "did you mean -avx2?"),
    ("host,+avx3", r"no feature 'avx3'; did you mean \+avx"),
    ("host,-zzzzzz", "names are those of /proc/cpuinfo"),
    ("host,-", "no feature ''"),
    ("host,", "knows no ''"),
    ("host,chek", "did you mean check?"),
    ("host,check,enforce", "not both"),
    ("host,+avx,-avx", "avx is turned on and off"),
    ("host,+avx2,-xsave", "avx2 needs xsave, which -xsave turns off"),
    ("host,phys-bits=99", "from 32 to 52, not '99'"),
    ("host,phys-bits=", "from 32 to 52, not ''"),
    ("host,phys-bits=-40", "from 32 to 52"),
    ("host,phys_bits=40", "did you mean phys-bits=N?"),
    ("host,phys-bits=0x28", "from 32 to 52, not '0x28'"),
    ("host,+phys-bits", "did you mean phys-bits=N?"),
    ("host,-check", "did you mean check?"),
    ("host,tsc-khz=2147483648", "from 1 to 2147483647"),
    ("host,tsc-khz=-5", "not '-5'"),
    ("host,tsc-khz=0", "from 1 to"),
    ("host,tsc-khz=fast", "not 'fast'"),
    ("host,kvm=maybe", "takes on or off, not 'maybe'"),
    ("host,hv", "did you mean hv=on or =off?"),
    ("host,-kvm", "did you mean kvm=off?"),
    ("host,+hv", "did you mean hv=on?"),
    ("host,kvm=on,kvm=off", "says kvm twice"),
]


@pytest.mark.parametrize(("text", "words"), BAD)
def test_bad_processors_are_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert words.replace("\\", "") in str(error.value)
    assert "\n" not in str(error.value)


def test_what_it_says() -> None:
    cpu = parse("x86-64-v3,enforce,+sse4.1,-LZCNT,phys-bits=40,kvm=off,hv=on,tsc-khz=2000000")
    assert (cpu.model, cpu.policy) == ("x86-64-v3", "enforce")
    assert (set(cpu.plus), set(cpu.minus)) == ({"sse4_1"}, {"abm"})
    assert (cpu.phys_bits, cpu.kvm, cpu.hv, cpu.tsc_khz) == (40, False, True, 2_000_000)
    assert parse("host").is_plain
    assert parse("host,kvm=off").is_plain
    assert not parse("host,-avx").is_plain


def test_each_feature_has_one_place_and_known_needs() -> None:
    assert len({(word, bit) for word, bit in PLACE.values()}) == len(PLACE)
    assert set(NEEDS) | set(NEEDED_BY) <= set(PLACE)
    assert all(name not in closure(NEEDS[name], NEEDS) for name in NEEDS), "no feature needs itself"


@pytest.mark.parametrize(
    ("name", "word", "bit"),
    [
        ("sse2", (1, 0, EDX), 26),
        ("xsave", (1, 0, ECX), 26),
        ("hypervisor", (1, 0, ECX), 31),
        ("avx2", (7, 0, EBX), 5),
        ("avx512f", (7, 0, EBX), 16),
        ("avx512vl", (7, 0, EBX), 31),
        ("pku", (7, 0, ECX), 3),
        ("amx_tile", (7, 0, EDX), 24),
        ("spec_ctrl", (7, 0, EDX), 26),
        ("avx_vnni", (7, 1, EAX), 4),
        ("avx512_bf16", (7, 1, EAX), 5),
        ("lam", (7, 1, EAX), 26),
        ("syscall", (0x8000_0001, 0, EDX), 11),
        ("lm", (0x8000_0001, 0, EDX), 29),
        ("abm", (0x8000_0001, 0, ECX), 5),
        ("topoext", (0x8000_0001, 0, ECX), 22),
        ("invtsc", (0x8000_0007, 0, EDX), 8),
        ("amd_ssbd", (0x8000_0008, 0, EBX), 24),
        ("vgif", (0x8000_000A, 0, EDX), 16),
        ("xsaves", (0xD, 1, EAX), 3),
    ],
)
def test_features_are_where_the_manuals_have_them(name: str, word: tuple[int, int, int], bit: int) -> None:
    assert PLACE[name] == (word, bit)


def test_every_name_that_cpuinfo_shows_of_a_processor_is_known() -> None:
    """The flags of an Intel Xeon of 2023 and of an AMD EPYC of 2022, without those that Linux makes up itself."""
    flags = """
        fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ss ht syscall
        nx pdpe1gb rdtscp lm pni pclmulqdq ssse3 fma cx16 pcid sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes
        xsave avx f16c rdrand hypervisor lahf_lm abm 3dnowprefetch fsgsbase tsc_adjust bmi1 hle avx2 smep bmi2 erms
        invpcid rtm avx512f avx512dq rdseed adx smap avx512ifma clflushopt clwb avx512cd sha_ni avx512bw avx512vl
        xsaveopt xsavec xgetbv1 xsaves avx_vnni avx512_bf16 arat avx512vbmi umip avx512_vbmi2 gfni vaes vpclmulqdq
        avx512_vnni avx512_bitalg avx512_vpopcntdq rdpid cldemote movdiri movdir64b fsrm serialize tsxldtrk amx_bf16
        avx512_fp16 amx_tile amx_int8 arch_capabilities monitor vmx smx est tm2 xtpr pdcm dca dtes64 ds_cpl pbe tm acpi
        dts cqm rdt_a intel_pt mpx waitpkg enqcmd bus_lock_detect pconfig arch_lbr ibt flush_l1d md_clear la57 hwp
        mmxext fxsr_opt cmp_legacy svm extapic cr8_legacy sse4a misalignsse osvw ibs skinit wdt tce topoext
        perfctr_core perfctr_nb bpext perfctr_llc mwaitx clzero irperf xsaveerptr rdpru wbnoinvd npt lbrv svm_lock
        nrip_save tsc_scale vmcb_clean flushbyasid decodeassists pausefilter pfthreshold avic v_vmsave_vmload vgif
        v_spec_ctrl pku cppc brs nonstop_tsc constant_tsc user_shstk
    """
    assert [flag for flag in flags.split() if canonical(flag) is None] == []


# Linux, arch/x86/kernel/cpu/cpuid-deps.c of 6.x, under the names of /proc/cpuinfo: all that have one.
LINUX_NEEDS = """
    fxsr:fpu xsaveopt:xsave xsavec:xsave xsaves:xsave avx:xsave pku:xsave mpx:xsave xgetbv1:xsave cmov:fxsr mmx:fxsr
    mmxext:mmx fxsr_opt:fxsr xsave:fxsr sse:fxsr sse2:sse pni:sse2 sse4_1:sse2 sse4_2:sse2 pclmulqdq:sse2 ssse3:sse2
    f16c:sse2 aes:sse2 sha_ni:sse2 gfni:sse2 fma:avx vaes:avx vpclmulqdq:avx avx2:avx avx512f:avx avx512ifma:avx512f
    avx512pf:avx512f avx512er:avx512f avx512cd:avx512f avx512dq:avx512f avx512bw:avx512f avx512vl:avx512f
    avx512vbmi:avx512f avx512_vbmi2:avx512vl avx512_vnni:avx512vl avx512_bitalg:avx512vl avx512_4vnniw:avx512f
    avx512_4fmaps:avx512f avx512_vpopcntdq:avx512f avx512_vp2intersect:avx512vl avx512_bf16:avx512vl
    avx512_fp16:avx512bw enqcmd:xsaves sgx_lc:sgx xfd:xsaves xfd:xgetbv1 amx_tile:xfd shstk:xsaves fred:lkgs
"""


def test_what_linux_takes_for_a_need_is_one() -> None:
    pairs = [pair.split(":") for pair in LINUX_NEEDS.split()]
    assert [pair for pair in pairs if pair[1] not in closure([pair[0]], NEEDS)] == []


# Models. What KVM supports is made up here: a processor of level 4.


def supported(vendor: bytes = b"GenuineIntel", without: tuple[str, ...] = ()) -> Leaves:
    leaves = Leaves()
    b, d, c = (int.from_bytes(vendor[i : i + 4], "little") for i in (0, 4, 8))
    leaves.entries[0, 0] = [0x1F, b, c, d]
    leaves.entries[1, 0] = [0x906EA, 0x800, 0, 0]
    leaves.entries[0x8000_0000, 0] = [0x8000_0008, 0, 0, 0]
    leaves.entries[0x8000_0008, 0] = [0x3027, 0, 0, 0]
    leaves.entries[XSAVE, 0] = [0xE7, 0xA80, 0xA80, 0]
    leaves.entries[XSAVE, 1] = [0xF, 0, 0, 0]
    for component, (size, offset) in {2: (256, 576), 5: (64, 1088), 6: (512, 1152), 7: (1024, 1664)}.items():
        leaves.entries[XSAVE, component] = [size, offset, 0, 0]
    everything = models.LEVELS["x86-64-v4"] | set(models._SYSTEM.split()) | {"vaes", "avx512_bf16", "avx_vnni", "pcid"}
    put(leaves, everything, True)
    put(leaves, closure(without, NEEDED_BY), False)
    return leaves


def made(cpu: Cpu, host: Leaves) -> tuple[Leaves, list[str]]:
    leaves = models.expand_features(cpu, host)
    missing = models.filter_features(cpu, leaves, host)
    models.settle(leaves, host)
    return leaves, missing


def test_a_feature_turned_off_takes_along_what_needs_it() -> None:
    leaves, missing = made(parse("host,-avx2"), supported())
    gone = {"avx2", "avx512f", "avx512vl", "avx512bw", "avx512cd", "avx512dq", "avx512_bf16", "avx_vnni"}
    assert set(shown(supported())) - set(shown(leaves)) == gone
    assert missing == []
    assert leaves.entries[XSAVE, 0] == [0b111, 832, 832, 0], "no area for what is not there"
    assert (XSAVE, 5) not in leaves.entries


def test_without_xsave_there_is_no_xsave_leaf() -> None:
    leaves, _ = made(parse("host,-xsave"), supported())
    assert not {"avx", "fma", "vaes", "avx2", "xsaveopt"} & set(shown(leaves))
    assert {tuple(v) for key, v in leaves.entries.items() if key[0] == XSAVE} == {(0, 0, 0, 0)}


def test_a_feature_turned_on_brings_what_it_needs() -> None:
    host = supported()
    leaves, missing = made(parse("x86-64-v1,+avx2"), host)
    assert missing == []
    assert {"avx2", "avx", "xsave"} <= set(shown(leaves))
    assert not {"fma", "avx512f", "bmi1", "pni"} & set(shown(leaves))


@pytest.mark.parametrize("vendor", [b"GenuineIntel", b"AuthenticAMD"])
@pytest.mark.parametrize("level", range(1, 5))
def test_levels_are_those_of_the_psabi(level: int, vendor: bytes) -> None:
    leaves, missing = made(parse(f"x86-64-v{level}"), supported(vendor))
    assert missing == []
    names = set(shown(leaves))
    tells = {2: "sse4_2", 3: "avx2", 4: "avx512f"}
    assert {n for n, name in tells.items() if name in names} == {n for n in tells if n <= level}
    assert "avx512_bf16" not in names, "nothing but the level"
    assert leaves.vendor == vendor
    aliases = leaves.read(0x8000_0001, EDX) & 0x0183_F3FF
    assert aliases == (leaves.read(1, EDX) & 0x0183_F3FF if vendor == b"AuthenticAMD" else 0)


@pytest.mark.parametrize("text", ["x86-64-v2", "host,-la57"])
def test_addresses_are_as_wide_as_the_features_allow(text: str) -> None:
    wide = supported()
    put(wide, ["la57"], True)
    wide.entries[0x8000_0008, 0] = [0x3934, 0, 0, 0]
    assert made(parse("host,-avx2"), wide)[0].read(0x8000_0008, EAX) == 0x3934
    assert made(parse(text), wide)[0].read(0x8000_0008, EAX) == 0x3034


def test_what_is_missing_is_named_once_and_hidden() -> None:
    leaves, missing = made(parse("x86-64-v4,enforce"), supported(without=("avx512f",)))
    assert sorted(missing) == ["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"]
    assert has(leaves, "avx2")
    assert not has(leaves, "avx512f")


def test_the_host_lacks_nothing_of_the_host() -> None:
    leaves, missing = made(parse("host,-pcid,enforce"), supported(without=("avx2", "sse4_2")))
    assert missing == []
    assert not has(leaves, "pcid")
