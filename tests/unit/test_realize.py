"""The steps before and at the start of a vCPU's thread, in QEMU's order: each does its part, and when."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvcpu import ConfigError, Kvm, KvmError, Machine
from pyvcpu.kvm.abi import basic as abi
from pyvcpu.kvm.abi.caps import Cap
from pyvcpu.observe.stats import Stats
from pyvcpu.vcpu import arch_init, arch_realize, pieces
from pyvcpu.x86.cpu import Cpu
from pyvcpu.x86.cpuid import EAX, EBX, ECX, EDX, TOPOEXT, Leaves
from pyvcpu.x86.features import closure, put
from pyvcpu.x86.paravirt import HV_SIGNATURE, KVM_SIGNATURE
from tests.fake_kernel import FakeKernel
from tests.threads import Caller, Hold

STEPS = [  # of a vCPU, in the words of the article
    *(
        "realize",
        "x86_cpu_expand_features",
        "x86_cpu_filter_features",
        "check_features",
        "guest_phys_bits",
        "cache_info",
    ),
    *("cpu_exec_realizefn", "mce_init", "thread start", "init_vcpu", "kvm_get_vcpu", "mmap kvm_run"),
    *("kvm_arch_set_tsc_khz", "hyperv_enabled", "expose_kvm", "setup_mce", "KVM_SET_CPUID2"),
    *("x86_cpu_apic_realize", "cpu_reset", "init_cpu_signals", "wait_io_event"),
]
REALIZE = [  # x86_cpu_realizefn
    "expand_features",
    "filter_features",
    "check_features",
    "set_phys_bits",
    "init_cache_info",
    "exec_realize",
    "mce_init",
]
INIT = ["set_tsc_khz", "hyperv_cpuid", "kvm_cpuid", "set_cpuid2"]  # kvm_arch_init_vcpu


def kernel(vendor: bytes = b"GenuineIntel") -> FakeKernel:
    fake = FakeKernel()
    everything = Leaves()
    b, d, c = struct.unpack("<3I", vendor)
    everything.entries[0, 0] = [0xD, b, c, d]
    everything.entries[1, 0] = [0x906EA, 0x800, 0, 0]
    everything.entries[4, 0] = [0x1C00_4121, 0x01C0_003F, 0x3F, 0]
    everything.entries[0x8000_0000, 0] = [0x8000_0008, 0, 0, 0]
    everything.entries[0x8000_0008, 0] = [0x3027, 0, 0, 0]
    everything.entries[0x4000_0000, 0] = [0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D]
    everything.entries[0x4000_0001, 0] = [0x0100_7EFB, 0, 0, 0]
    put(everything, closure(["avx", "lm", "nx", "x2apic", "mce", "mca"], {"avx": {"xsave"}}), True)
    raw = everything.pack()
    fake.cpuid = [abi.kvm_cpuid_entry2.from_buffer_copy(raw, at) for at in range(0, len(raw), 40)]
    fake.caps[Cap.TSC_DEADLINE_TIMER] = 1
    return fake


@pytest.fixture
def make() -> Iterator[Callable[..., Machine]]:
    """Give a function that makes a machine on the fake, loaded and not started."""
    opened: list[Any] = []

    def made(smp: int | str = 1, cpu: str | Cpu = "host", fake: FakeKernel | None = None, **options: Any) -> Machine:
        kvm = Kvm("fake", fake or kernel())
        opened.append(kvm)
        machine = Machine(options.pop("memory", "1M"), smp, cpu=cpu, kvm=kvm, output=bool, **options)
        opened.append(machine)
        machine.load(b"\xf4", format="flat")
        return machine

    yield made
    for thing in reversed(opened):
        thing.close()


class Steps(Stats):
    """A probe that keeps the names of the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[str] = []

    def step(self, index: int, name: str, function: Callable[[], Any]) -> Any:
        self.taken.append(name)
        return function()


def test_every_step_is_taken_in_qemus_order(make: Callable[..., Machine]) -> None:
    machine, probe = make(), Steps()
    machine.observe(probe)
    machine.start()
    machine.close()
    taken = [name for name in probe.taken if name != "wait for created"]
    assert taken == [*STEPS, "destroy_vcpu"]


# The article that docs/lifecycle.md goes along.
ARTICLE = [
    *("x86_cpu_expand_features", "x86_cpu_filter_features", "check_cpuid", "guest physical bits", "cache information"),
    *("cpu_exec_realizefn", "mce_init", "qemu_init_vcpu", "x86_cpu_apic_realize", "cpu_reset", "parent_realize"),
    *("kvm_arch_set_tsc_khz", "hyperv_enabled", "expose_kvm", "KVM_SET_CPUID2"),
]


def test_the_document_goes_along_the_article_step_by_step() -> None:
    lines = Path(__file__).parents[2].joinpath("docs", "lifecycle.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:]] for line in lines if line.startswith("| ")]
    steps = [row for row in rows if row[0].isdigit() and len(row) == 5]
    assert [int(number) for number, *_ in steps] == [*range(1, 12), *range(1, 5)]
    assert [name for name, (_, qemu, *_) in zip(ARTICLE, steps, strict=True) if name not in qemu] == []
    ours = [here.strip("`").removeprefix("Vcpu.") for _, _, here, *_ in steps]
    assert ours == [*REALIZE, "start_vcpu", "apic_realize", "cpu_reset", "wait_created", *INIT]
    assert all(hasattr(arch_realize, name) for name in REALIZE)
    assert hasattr(pieces, "cpu_reset")
    assert all(hasattr(arch_init, name) for name in (*INIT, "apic_realize"))


def realized(machine: Machine) -> Leaves:
    machine.start()
    return Leaves.unpack(bytes(machine._threads[-1].cpuid))


def test_1_features_are_expanded(make: Callable[..., Machine]) -> None:
    assert realized(make(cpu="host,-xsave")).read(1, ECX) & (1 << 26 | 1 << 28) == 0, "neither xsave nor avx"


def test_2_what_kvm_lacks_is_filtered_out(make: Callable[..., Machine]) -> None:
    assert realized(make(cpu="host,+avx2")).read(7, EBX) == 0


def test_3_check_warns_and_enforce_refuses(make: Callable[..., Machine]) -> None:
    said: list[str] = []
    make(cpu="host,+avx2,+sha_ni", warn=said.append).start()
    assert said == []
    make(cpu="host,+avx2,+sha_ni,check", warn=said.append).start()
    (line,) = said
    assert {"avx2", "sha_ni"} <= set(line.split())
    with pytest.raises(ConfigError, match=r"lacks .*avx2"):
        make(cpu="host,+avx2,enforce").start()


@pytest.mark.parametrize(("cpu", "bits"), [("host", 0x27), ("host,phys-bits=36", 36)])
def test_4_physical_address_bits(make: Callable[..., Machine], cpu: str, bits: int) -> None:
    assert realized(make(cpu=cpu)).read(0x8000_0008, EAX) == 0x3000 | bits


def test_4_ram_must_fit(make: Callable[..., Machine]) -> None:
    make(cpu="host,phys-bits=34", memory="8G").start()
    with pytest.raises(ConfigError, match="takes 34 bits of physical address; the processor has 33"):
        make(cpu="host,phys-bits=33", memory="8G").start()
    with pytest.raises(ConfigError, match="at most the host's 39, not 40"):
        make(cpu="host,phys-bits=40").start()


def test_5_caches_are_shared_as_the_topology_says(make: Callable[..., Machine]) -> None:
    assert realized(make("8,sockets=2,cores=2,threads=2")).read(4, EAX) == 1 << 26 | 1 << 14 | 0x121


def test_5_amds_topology_extensions_are_made_here(make: Callable[..., Machine]) -> None:
    """They are shown although KVM does not offer them, and taken back with their leaves."""
    leaves = realized(make("8,sockets=2,cores=2,threads=2", "host,+topoext,enforce", kernel(b"AuthenticAMD")))
    assert leaves.read(0x8000_001E, EAX) == 7
    assert leaves.read(0x8000_001D, EAX) >> 14 == 1
    without = realized(make(8, "host,-topoext", kernel(b"AuthenticAMD")))
    assert not without.read(0x8000_0001, ECX) & TOPOEXT
    assert {function for function, _ in without.entries if function > 0x8000_0008} == set()
    with pytest.raises(ConfigError, match="lacks topoext"):
        make(cpu="host,+topoext,enforce").start()


def test_6_kvm_must_be_able_to_run_it(make: Callable[..., Machine]) -> None:
    make("16,sockets=4,cores=4").start()
    with pytest.raises(ConfigError, match=r"vCPU 12 has APIC id 16 .* up to 15"):
        make("15,sockets=5,cores=3").start()


def test_7_machine_checks(make: Callable[..., Machine]) -> None:
    machine = make()
    arch_realize.realize(machine._threads[0])
    assert machine._threads[0].mcg_cap == 1 << 24 | 1 << 8 | 10
    machine = make(cpu="host,-mce")
    arch_realize.realize(machine._threads[0])
    assert machine._threads[0].mcg_cap == 0


def test_8_it_gets_a_thread_of_its_own(make: Callable[..., Machine]) -> None:
    made = make(2)
    assert [one.thread for one in made.vcpus] == [None, None]
    made.start()
    threads = [one.thread for one in made.vcpus]
    assert [thread.name for thread in threads if thread] == ["CPU 0/KVM", "CPU 1/KVM"]
    made.close()
    assert not any(thread.is_alive() for thread in threads if thread)


def test_9_each_has_its_apic_id(make: Callable[..., Machine]) -> None:
    machine = make("6,sockets=2,cores=3")
    machine.start()
    assert [one.apic_id for one in machine.vcpus] == [0, 1, 2, 4, 5, 6]
    assert [one.cpuid.find(0xB).edx for one in machine._threads] == [0, 1, 2, 4, 5, 6]  # type: ignore[union-attr]  # is there


def test_10_it_is_reset(make: Callable[..., Machine]) -> None:
    machine = make(2)
    machine.start()
    assert machine.vcpus[1].registers.rdi == 1


def test_11_it_is_there_when_the_caller_goes_on(make: Callable[..., Machine]) -> None:
    held = Hold()
    fake = kernel()
    fake.before("KVM_SET_REGS", held)  # the last thing that a processor is told
    made = make(fake=fake)
    caller = Caller(made.start)
    held.wait()
    assert (made.vcpus[0].created, caller.is_alive()) == (False, True)
    held.release()
    assert caller.done()
    assert caller.error is None
    assert made.vcpus[0].created


def test_11_what_went_wrong_is_raised_in_the_caller(make: Callable[..., Machine]) -> None:
    fake = kernel()
    fake.refuse("KVM_SET_CPUID2", errno.E2BIG)
    made = make(fake=fake)
    with pytest.raises(KvmError, match="KVM_SET_CPUID2"):
        made.start()
    assert not made.vcpus[0].created


def test_init_1_the_rate_of_the_tsc_is_asked(make: Callable[..., Machine]) -> None:
    fake = kernel()
    made = make(fake=fake)
    made.start()
    assert fake.count("KVM_GET_TSC_KHZ") == 1
    assert fake.count("KVM_SET_TSC_KHZ") == 0, "none was asked for"
    with pytest.raises(ConfigError, match=r"tsc-khz=2000000 cannot be had: .* cannot scale it"):
        make(cpu="host,tsc-khz=2000000").start()


def test_init_2_hyperv_takes_the_first_place(make: Callable[..., Machine]) -> None:
    fake = kernel()
    fake.caps[Cap.SYS_HYPERV_CPUID] = 1
    leaves = realized(make(cpu="host,hv=on", fake=fake))
    assert [leaves.read(0x4000_0000, EBX), leaves.read(0x4000_0100, EBX)] == [HV_SIGNATURE[0], KVM_SIGNATURE[0]]
    with pytest.raises(ConfigError, match="hv=on cannot be had: this KVM has no Hyper-V enlightenments"):
        make(cpu="host,hv=on").start()


def test_init_4_cpuid_is_set_for_each(make: Callable[..., Machine]) -> None:
    fake = kernel()
    make(3, fake=fake).start()
    assert fake.count("KVM_SET_CPUID2") == 3


def test_all_processors_share_what_is_alike(make: Callable[..., Machine]) -> None:
    fake = kernel()
    make(4, fake=fake).start()
    assert fake.count("KVM_GET_SUPPORTED_CPUID") == 1


# What KVM_GET_SUPPORTED_CPUID cannot know.


def test_there_is_always_a_hypervisor_unless_it_hides(make: Callable[..., Machine]) -> None:
    assert realized(make()).read(1, ECX) >> 31
    assert not realized(make(cpu="host,-hypervisor")).read(1, ECX) >> 31


def test_the_local_apics_features_need_a_local_apic(make: Callable[..., Machine]) -> None:
    x2apic, deadline, unhalt = 1 << 21, 1 << 24, 1 << 7
    with_apic = realized(make(irqchip="kernel"))
    assert with_apic.read(1, ECX) & (x2apic | deadline) == x2apic | deadline
    assert with_apic.read(0x4000_0001, EAX) & unhalt
    without = realized(make(irqchip="none"))
    assert without.read(1, ECX) & (x2apic | deadline) == 0
    assert not without.read(0x4000_0001, EAX) & unhalt


def test_init_3_without_kvms_leaves_the_first_is_there_and_empty(make: Callable[..., Machine]) -> None:
    leaves = realized(make(cpu="host,kvm=off"))
    assert {key: value for key, value in leaves.entries.items() if 0x4000_0000 <= key[0] < 0x5000_0000} == {
        (0x4000_0000, 0): [0, 0, 0, 0]
    }


def test_a_cpu_can_be_made_without_text(make: Callable[..., Machine]) -> None:
    assert realized(make(cpu=Cpu(minus=["nx"]))).read(0x8000_0001, EDX) == 1 << 29
