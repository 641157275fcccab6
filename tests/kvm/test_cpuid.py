"""What CPUID shows in the guest: topology, features, paravirtual leaves; and what `pyvcpu cpuid` says of it."""

from __future__ import annotations

import ctypes
import errno
import json
import struct
from typing import Any

import pytest

from pyvcpu import ConfigError, Kvm, Machine
from pyvcpu.kvm.abi import basic as abi
from pyvcpu.kvm.abi.caps import Cap
from pyvcpu.x86.cpuid import EAX, EBX, ECX, EDX, Leaves
from pyvcpu.x86.features import NEEDED_BY, PLACE, closure, has
from tests.fake_kernel import REQUESTS, WatchedKernel
from tests.kvm.support import DEVICE, GUESTS, IMAGES, boot, machine, pyvcpu

GUEST = GUESTS / "cpuid.bin"
RESULTS, EACH, RECORD = 0x100000, 0x1000, struct.Struct("<6I")
TOPOLOGY = "8,sockets=2,cores=2,threads=2"
PLACES = [(package, core, thread) for package in range(2) for core in range(2) for thread in range(2)]


def guest_leaves(made: Machine, index: int) -> Leaves:
    """Return what vCPU `index` wrote down: see tests/guests/cpuid.S."""
    leaves = Leaves()
    raw = made.memory.read(RESULTS + index * EACH, EACH)
    for at in range(0, EACH - RECORD.size, RECORD.size):
        function, subleaf, *registers = RECORD.unpack_from(raw, at)
        if at and not function:
            break
        leaves.entries[function, subleaf] = registers
    return leaves


def run_guest(smp: str | int, cpu: str = "host", **options: Any) -> list[Leaves]:
    """Boot the guest that reads its leaves; return them for each vCPU."""
    kvm = options.pop("kvm", DEVICE)
    with Machine("4M", smp, cpu=cpu, kvm=kvm, output=lambda data: None, **options) as made:
        made.load(GUEST, mode="long")
        assert made.run(60).reason == "halted"
        return [guest_leaves(made, index) for index in range(made.topology.cpus)]


def places_of_0xb(leaves: Leaves) -> tuple[int, int, int, int]:
    """Return APIC id, package, core, thread, as a guest's kernel takes them out of leaf 0xB."""
    apic_id = leaves.read(0xB, EDX)
    core_shift, package_shift = leaves.read(0xB, EAX, 0), leaves.read(0xB, EAX, 1)
    core = apic_id >> core_shift & ((1 << (package_shift - core_shift)) - 1)
    return apic_id, apic_id >> package_shift, core, apic_id & ((1 << core_shift) - 1)


class AmdKernel(WatchedKernel):
    """The real KVM, which says that its processors are AMD's: the leaves are made for such, wherever this runs."""

    def answer(self, fd: int, number: int, argument: int) -> int:
        result = super().answer(fd, number, argument)
        if REQUESTS[number].name == "KVM_GET_SUPPORTED_CPUID" and result == 0:
            head = abi.kvm_cpuid2.from_address(argument)
            start = argument + ctypes.sizeof(head)
            for entry in (abi.kvm_cpuid_entry2 * head.nent).from_address(start):
                if entry.function in (0, 0x8000_0000):
                    entry.ebx, entry.edx, entry.ecx = struct.unpack("<3I", b"AuthenticAMD")
        return result


@pytest.fixture
def amd() -> Any:
    with Kvm(DEVICE, AmdKernel()) as kvm:
        yield kvm


def test_every_vcpu_finds_its_place() -> None:
    for index, leaves in enumerate(run_guest(TOPOLOGY)):
        assert places_of_0xb(leaves) == (index, *PLACES[index])
        assert leaves.read(1, EBX) >> 24 == index
        assert leaves.read(1, EBX) >> 16 & 0xFF == 4
        assert (leaves.read(0xB, EBX, 0), leaves.read(0xB, EBX, 1)) == (2, 4)
        if leaves.read(0, EAX) >= 0x1F and not leaves.is_amd:
            assert [leaves.entries[0x1F, i] for i in range(3)] == [leaves.entries[0xB, i] for i in range(3)]


def test_every_vcpu_of_amds_kind_finds_the_same_place_in_both_leaves(amd: Kvm) -> None:
    for index, leaves in enumerate(run_guest(TOPOLOGY, kvm=amd)):
        assert leaves.vendor == b"AuthenticAMD"
        apic_id, package, core, _ = places_of_0xb(leaves)
        eax, ebx, ecx, _ = leaves.entries[0x8000_001E, 0]
        assert (apic_id, package, core) == (eax, ecx & 0xFF, ebx & 0xFF) == (index, *PLACES[index][:2])
        assert (ebx >> 8 & 0xFF) + 1 == 2, "threads of a core"
        assert leaves.read(0x8000_0008, ECX) & 0xF0FF == 2 << 12 | 3
        sharing = [(leaves.read(0x8000_001D, EAX, i) >> 14 & 0xFFF) + 1 for i in range(3)]
        assert sharing[0] == 2


def test_gaps_in_the_ids() -> None:
    places = [places_of_0xb(leaves) for leaves in run_guest("6,sockets=2,cores=3")]
    assert places == [(i // 3 << 2 | i % 3, i // 3, i % 3, 0) for i in range(6)]


@pytest.mark.parametrize("irqchip", ["none", "kernel", "split"])
def test_255_vcpus_with_a_topology(irqchip: str) -> None:
    """Ids go up to 578 here: beyond 8 bits, so that the interrupt controllers need the x2APIC API."""
    with machine(GUEST, "255,sockets=5,cores=17,threads=3", memory="16M", mode="long", irqchip=irqchip) as made:
        made.start()
        assert made.vcpus[254].apic_id == 4 << 7 | 16 << 2 | 2
        assert all(vcpu.created for vcpu in made.vcpus)
        table = made._threads[254].cpuid
        assert table.find(0xB, 1).edx == made.vcpus[254].apic_id  # type: ignore[union-attr]  # it is there
    assert not any(vcpu.created for vcpu in made.vcpus)


def test_ids_beyond_8_bits_need_x2apic() -> None:
    refused = pytest.raises(ConfigError, match="vCPU 255, need the feature x2apic")
    with machine(GUEST, 256, memory="4M", irqchip="kernel", cpu="host,-x2apic") as made, refused:
        made.start()


class NoX2apicApi(WatchedKernel):
    """The real KVM, without KVM_CAP_X2APIC_API."""

    def answer(self, fd: int, number: int, argument: int) -> int:
        if REQUESTS[number].name == "KVM_CHECK_EXTENSION" and argument == Cap.X2APIC_API:
            return 0
        return super().answer(fd, number, argument)


def test_ids_beyond_8_bits_need_the_x2apic_api() -> None:
    refused = pytest.raises(ConfigError, match="APIC ids above 254 need KVM_CAP_X2APIC_API")
    with Kvm(DEVICE, NoX2apicApi()) as kvm:
        with machine(GUEST, 256, memory="4M", kvm=kvm, irqchip="kernel") as made, refused:
            made.start()
        with machine(GUEST, 255, memory="4M", kvm=kvm, irqchip="kernel") as made:
            made.start()


# Paravirtual leaves.


def test_kvm_says_who_it_is_and_hides() -> None:
    (shown,) = run_guest(1)
    assert struct.pack("<3I", *shown.entries[0x4000_0000, 0][1:]) == b"KVMKVMKVM\0\0\0"
    assert shown.read(0x4000_0001, EAX)
    (hidden,) = run_guest(1, "host,kvm=off")
    assert hidden.entries[0x4000_0000, 0] == [0, 0, 0, 0]


def test_the_rate_of_the_tsc_is_told() -> None:
    with machine(GUEST, memory="4M", mode="long") as made:
        made.run(60)
        leaves, khz = guest_leaves(made, 0), made.vcpus[0].tsc_khz
    if leaves.read(0x4000_0000, EAX) < 0x4000_0010:
        pytest.skip("this host's TSC is not invariant: its rate may change")
    assert leaves.read(0x4000_0010, EAX) == khz


def test_hyperv_or_a_refusal() -> None:
    with Kvm(DEVICE) as kvm:
        has_hyperv = kvm.check_extension(Cap.HYPERV_CPUID) or kvm.check_extension(Cap.SYS_HYPERV_CPUID)
    if not has_hyperv:
        done = boot(GUEST, "--mode", "long", "--cpu", "host,hv=on")
        assert (done.returncode, b"no Hyper-V enlightenments" in done.stderr) == (2, True)
        return
    (leaves,) = run_guest(1, "host,hv=on")
    assert struct.pack("<3I", *leaves.entries[0x4000_0000, 0][1:]) == b"Microsoft Hv"
    assert struct.pack("<3I", *leaves.entries[0x4000_0100, 0][1:]) == b"KVMKVMKVM\0\0\0"


class ScalingKernel(WatchedKernel):
    """The real KVM, which claims to scale the TSC, and does what it is told: refuse, or lie."""

    def __init__(self, refuse: bool) -> None:
        super().__init__()
        self.refuses = refuse
        self.khz = 2_000_000

    def answer(self, fd: int, number: int, argument: int) -> int:
        name = REQUESTS[number].name
        if name == "KVM_CHECK_EXTENSION" and argument == 60:  # KVM_CAP_TSC_CONTROL
            return 1
        if name == "KVM_SET_TSC_KHZ":
            self.khz = argument if self.refuses else self.khz + 1
            return -errno.EINVAL if self.refuses else 0
        if name == "KVM_GET_TSC_KHZ":
            return self.khz
        return super().answer(fd, number, argument)


@pytest.mark.parametrize(("refuse", "words"), [(True, "Invalid argument"), (False, "it says 2000001 kHz")])
def test_a_rate_that_is_not_had_is_refused(refuse: bool, words: str) -> None:
    """Also by a KVM that reports the rate which it has just refused."""
    refused = pytest.raises(ConfigError, match=f"tsc-khz=1000000 cannot be had.*{words}")
    with (
        Kvm(DEVICE, ScalingKernel(refuse)) as kvm,
        machine(GUEST, kvm=kvm, cpu="host,tsc-khz=1000000") as made,
        refused,
    ):
        made.start()


def test_a_rate_that_is_the_hosts_needs_no_scaling() -> None:
    with machine(GUEST) as made:
        made.start()
        khz = made.vcpus[0].tsc_khz
    if not khz:
        pytest.skip("this KVM does not tell the TSC's rate")
    (leaves,) = run_guest(1, f"host,tsc-khz={khz + khz // 10_000}")
    assert leaves.read(0x4000_0010, EAX) == khz, "within what clocks make up for; and the real one is told"


# Features.


def host_shows(name: str) -> bool:
    """Tell whether KVM shows `name` even to a guest that is to see no feature at all: then it cannot be hidden here."""
    with machine(GUEST, cpu=f"host,-{name}") as made:
        made.start()
        told = made.vcpus[0].run_on_cpu(lambda vcpu: bytes(vcpu.fd.get_cpuid2()))
        assert not has(Leaves.unpack(bytes(made._threads[0].cpuid)), name), "it was told not to"
    return has(Leaves.unpack(told), name)


@pytest.mark.parametrize("name", ["avx2", "syscall", "sse4_2", "pni", "nx", "mtrr"])
def test_a_feature_turned_off_is_hidden_with_all_that_needs_it(name: str) -> None:
    if host_shows(name):
        pytest.skip(f"this KVM shows its host's {name} whatever it is told")
    (leaves,) = run_guest(1, f"host,-{name}")
    for gone in closure([name], NEEDED_BY):
        (function, index, _), _ = PLACE[gone]
        if (function, index) in leaves.entries and not host_shows(gone):
            assert not has(leaves, gone), gone


def test_missing_features_are_warned_of_or_refused() -> None:
    with Kvm(DEVICE) as kvm:
        host = Leaves.unpack(bytes(kvm.get_supported_cpuid()))
    lacking = [name for name in ("avx512f", "avx512bw", "avx512vl") if not has(host, name)]
    if not lacking:
        pytest.skip("this host is of level 4")
    done = boot(IMAGES / "hello.bin", "--cpu", "x86-64-v4,enforce")
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 2
    assert done.stdout == b""
    assert set(lacking) <= set(line.split())
    done = boot(IMAGES / "hello.bin", "--cpu", "x86-64-v4,check")
    (line,) = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout) == (0, b"hello from vCPU 0 of 1\n")
    assert set(lacking) <= set(line.split())
    done = boot(IMAGES / "hello.bin", "--cpu", "x86-64-v4")
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_library_warns_as_python_does() -> None:
    with machine(GUEST, cpu="host,+3dnow,+tbm,+mpx,check") as made, pytest.warns(UserWarning, match="lacks .*tbm"):
        made.start()


# The command.


def test_the_command_says_what_the_guest_sees() -> None:
    leaves = run_guest(TOPOLOGY)
    for index in (0, 5, 7):
        done = pyvcpu("cpuid", "--smp", TOPOLOGY, "--index", index, "--irqchip", "none", "--json")
        assert (done.returncode, done.stderr) == (0, b"")
        told = json.loads(done.stdout)
        assert (told["schema"], told["vcpu"]["apic_id"]) == (1, index)
        assert tuple(told["vcpu"][part] for part in ("package", "core", "thread")) == PLACES[index]
        listed = {(leaf["function"], leaf["index"]): leaf for leaf in told["leaves"]}
        for key, registers in leaves[index].entries.items():
            if key in listed and key[0] not in DYNAMIC:
                assert [listed[key][name] for name in ("eax", "ebx", "ecx", "edx")] == registers, key


DYNAMIC = (0x1, 0x7)  # they show what the guest has turned on: OSXSAVE, OSPKE


@pytest.mark.parametrize("form", ["--raw", "--json", None])
def test_the_forms_of_the_command(form: str | None) -> None:
    done = pyvcpu("cpuid", "--cpu", "x86-64-v1,kvm=off", *([form] if form else []))
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    if form == "--raw":
        assert text.startswith("CPU:\n   0x00000000 0x00: eax=0x0000000d ebx=0x")
    elif form is None:
        assert "vCPU       0: APIC id 0, package 0, core 0, thread 0" in text
        assert "pyvcpu x86-64-v1 processor" in text
        assert "hypervisor none told" in text


@pytest.mark.parametrize(
    ("smp", "index", "apic_id"),
    [("2,maxcpus=4", 3, 3), ("255,sockets=255", 254, 254), ("4,maxcpus=300", 299, 299)],
)
def test_the_command_knows_every_processor(smp: str, index: int, apic_id: int) -> None:
    """Also those that only maxcpus has room for, and more than have real-mode stacks."""
    told = json.loads(pyvcpu("cpuid", "--smp", smp, "--index", index, "--json").stdout)
    assert told["vcpu"]["apic_id"] == apic_id
    assert {leaf["edx"] for leaf in told["leaves"] if leaf["function"] == 0xB} == {apic_id}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--index", 1), "--index takes a number from 0 to 0"),
        (("--smp", "2,maxcpus=4", "--index", 4), "from 0 to 3"),
        (("--index", "-1"), "not '-1'"),
        (("--index", "one"), "not 'one'"),
        (("--raw", "--json"), "not with both"),
        (("--irqchip", "some"), "none, kernel or split, not 'some'"),
        (("--cpu", "hoost"), "did you mean host?"),
        (("--smp", "4,cores=3"), "must be 4"),
    ],
)
def test_what_the_command_refuses(arguments: tuple[object, ...], words: str) -> None:
    done = pyvcpu("cpuid", *arguments)
    (line,) = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout) == (2, b"")
    assert words in line


# Bad combinations.

BAD = [
    ("--smp", "0", "at least 1 vCPU, not 0"),
    ("--smp", "-3", "at least 1 vCPU"),
    ("--smp", "many", "whole number, not 'many'"),
    ("--smp", "4,sockets=3", "must be 4"),
    ("--smp", "8,sockets=2,cores=2,threads=4", "must be 8"),
    ("--smp", "4,cores=8", "must be 4"),
    ("--smp", "4,maxcpus=2", "maxcpus must be at least"),
    ("--smp", "4,cores=0", "cores must be at least 1"),
    ("--smp", "4,socket=1", "did you mean sockets?"),
    ("--smp", "4,8", "one bare number"),
    ("--smp", "4,cores=2,cores=2", "cores twice"),
    ("--smp", "100000", "at most"),
    ("--smp", "1,maxcpus=100000", "at most"),
    ("--smp", "sockets=3,cores=3,threads=100000", "at most"),
    ("--smp", "8,cores=3,threads=2", "must be 8"),
    ("--smp", "2,sockets=2,cores=3,maxcpus=4", "must be 4, the maxcpus"),
    ("--smp", "4,threads=", "whole number for threads"),
    ("--cpu", "hoost", "did you mean host?"),
    ("--cpu", "", "starts with a model"),
    ("--cpu", "x86-64-v9", "did you mean x86-64-v"),
    ("--cpu", "host,+avx22", "did you mean +avx2?"),
    ("--cpu", "host,avx2", "did you mean +avx2?"),
    ("--cpu", "host,+avx2,-xsave", "avx2 needs xsave"),
    ("--cpu", "host,+nx,-nx", "turned on and off"),
    ("--cpu", "host,check,enforce", "not both"),
    ("--cpu", "host,kvm=no", "on or off"),
    ("--cpu", "host,-kvm", "did you mean kvm=off?"),
    ("--cpu", "host,+la57,-lm", "la57 needs lm"),
    ("--cpu", "host,tsc-khz=0", "a number from 1"),
    ("--cpu", "host,phys-bits=12", "from 32 to 52"),
    ("--cpu", "host,phys-bits=52", "at most the host's"),
    ("--cpu", "host,tsc-khz=x", "a number from 1"),
    ("--cpu", "host,tsc-khz=7", "tsc-khz=7 cannot be had"),
    ("--cpu", "host,+3dnow,+mpx,+tbm,enforce", "cannot be had in full"),
    ("--cpu", "host,frobnicate=1", "knows no 'frobnicate=1'"),
]


@pytest.mark.parametrize(("option", "value", "words"), BAD)
def test_bad_combinations(option: str, value: str, words: str) -> None:
    done = boot(IMAGES / "hello.bin", f"{option}={value}")
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--cpu", "host,phys-bits=32", "--memory", "8G"), "RAM ends at 0x240000000, which takes 34 bits"),
        (("--cpu", "host,-lm", "--mode", "long"), "needs the feature lm"),
        (("--cpu", "host,-x2apic", "--smp", "300", "--irqchip", "kernel"), "need the feature x2apic"),
    ],
)
def test_what_does_not_go_together(arguments: tuple[str, ...], words: str) -> None:
    done = boot(IMAGES / "hello.bin", *arguments)
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 2
    assert words in line
