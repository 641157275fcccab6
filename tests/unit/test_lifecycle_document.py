"""docs/lifecycle.md has every name that the article on QEMU's vCPUs shows, and the pieces of a vCPU's state."""

from __future__ import annotations

import re

import pytest

from pyvcpu.kvm import abi
from pyvcpu.vcpu.state import PIECES
from tools import gen_docs

TEXT = gen_docs.DOCUMENTS[1].read_text(encoding="utf-8")
# What stands in headings, and in the columns for QEMU's steps.
SHOWN = "\n".join(
    line if line.startswith("## ") else "|".join(line.split("|")[1:3])
    for line in TEXT.splitlines()
    if line.startswith(("## ", "| "))
)
# In the order of the article: each function that it shows, and each field that these set or wait for.
NAMES = [
    *("x86_cpu_common_class_init", "device_class_set_parent_realize", "_unrealize", "x86_cpu_realizefn"),
    *("x86_cpu_expand_features", "x86_cpu_filter_features", "check_cpuid", "enforce_cpuid", "cpu_exec_realizefn"),
    *("mce_init", "qemu_init_vcpu", "x86_cpu_apic_realize", "cpu_reset", "parent_realize"),
    *("nr_cores", "nr_threads", "stopped", "num_ases", "cpu_address_space_init", "kvm_enabled", "hax_enabled"),
    *("hvf_enabled", "tcg_enabled", "whpx_enabled", "qemu_kvm_start_vcpu", "qemu_hax_start_vcpu"),
    *("qemu_hvf_start_vcpu", "qemu_tcg_init_vcpu", "qemu_whpx_start_vcpu", "qemu_dummy_start_vcpu"),
    *("created", "qemu_cond_wait", "qemu_cpu_cond", "qemu_global_mutex", "thread", "halt_cond", "qemu_cond_init"),
    *("CPU <n>/KVM", "qemu_thread_create", "qemu_kvm_cpu_thread_fn", "rcu_register_thread"),
    *("qemu_mutex_lock_iothread", "qemu_thread_get_self", "thread_id", "can_do_io", "current_cpu", "kvm_init_vcpu"),
    *("error_report", "kvm_init_cpu_signals", "qemu_cond_signal", "cpu_can_run", "kvm_cpu_exec", "EXCP_DEBUG"),
    *("cpu_handle_guest_debug", "qemu_wait_io_event", "unplug", "qemu_kvm_destroy_vcpu"),
    *("qemu_mutex_unlock_iothread", "rcu_unregister_thread", "kvm_get_vcpu", "kvm_arch_vcpu_id", "kvm_fd"),
    *("kvm_state", "vcpu_dirty", "KVM_GET_VCPU_MMAP_SIZE", "kvm_run", "mmap", "coalesced_mmio_ring"),
    *("kvm_arch_init_vcpu", "kvm_arch_set_tsc_khz", "KVM_GET_TSC_KHZ", "hyperv_enabled", "expose_kvm", "0x40000000"),
    *("cpuid_data", "KVM_SET_CPUID2"),
]


@pytest.mark.parametrize("name", NAMES)
def test_the_document_has_every_name_of_the_article(name: str) -> None:
    assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", SHOWN)


def test_every_piece_has_a_meaning_and_no_other_has() -> None:
    assert list(gen_docs.MEANINGS) == [piece.name for piece in PIECES]


def test_the_requests_of_the_pieces_are_kvms() -> None:
    requests = {name for _, text in gen_docs.MEANINGS.values() for name in re.findall(r"KVM_\w+", text)}
    assert len(requests) == 29
    assert {name for name in requests if not hasattr(abi, name)} == set()


def test_the_table_has_size_and_need_of_each_piece() -> None:
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in gen_docs.piece_table()[2:]]
    found = {name.strip("`"): cells for name, _, _, *cells in rows}
    assert list(found) == [piece.name for piece in PIECES]
    assert found["regs"] == ["", "144", "sets it"]
    assert found["lapic"] == ["local APICs in KVM", "1024", "sets it"]
    assert found["xsave"] == ["KVM_CAP_XSAVE", "varies", "sets it"]
    assert found["tsc_khz"] == ["KVM_CAP_GET_TSC_KHZ", "8", "leaves it"]
