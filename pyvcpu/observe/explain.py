"""The life of vCPUs in words, a line for each step while it happens."""

from __future__ import annotations

import threading

from .timeline import RUN

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .timeline import Event

MOST_EXITS = 20  # kinds of exits of a vCPU that get a line
AGAIN = ("kick", "wait_io_event", RUN)  # and ioctls: these get a line once in a life

MEANINGS = {
    "realize": "make up its features and CPUID leaves; there is no thread yet (x86_cpu_realizefn)",
    "x86_cpu_expand_features": "realize 1: the features of the model, and those that --cpu turns on and off",
    "x86_cpu_filter_features": "realize 2: hide what this KVM does not support",
    "check_features": "realize 3: warn of what is missing, or refuse it (check_cpuid, enforce_cpuid)",
    "guest_phys_bits": "realize 4: how wide a physical address is; RAM must fit",
    "cache_info": "realize 5: which caches there are, and who shares them",
    "cpu_exec_realizefn": "realize 6: can this KVM run such a processor?",
    "mce_init": "realize 7: how many banks report machine checks",
    "kvm_get_vcpu": "a parked fd of a former life, else a new vCPU of KVM's",
    "mmap kvm_run": "map struct kvm_run, which KVM and this thread share, and the ring of coalesced writes behind it",
    "kvm_arch_set_tsc_khz": "arch_init 1: the rate of the time-stamp counter",
    "hyperv_enabled": "arch_init 2: the CPUID leaves of Hyper-V, with hv=on",
    "expose_kvm": "arch_init 3: KVM's signature and features, from leaf 0x40000000 on",
    "setup_mce": "the machine-check banks that realize decided on",
    "KVM_SET_CPUID2": "arch_init 4: tell KVM what the guest's CPUID instruction will show",
    "x86_cpu_apic_realize": "realize 9: the local APIC, which KVM makes together with the vCPU",
    "cpu_reset": "realize 10: registers as they are when it starts",
    "thread start": "make the thread that is this vCPU's life",
    "start": "the thread is on its way",
    "wait for created": "sleep until the vCPU says that it is created",
    "init_vcpu": "in its thread: get the fd, map struct kvm_run, tell KVM what it is",
    "init_cpu_signals": "get ready for kicks: a signal that does nothing but interrupt KVM_RUN",
    "init_vcpu failed": "the thread ends; whoever started it gets the exception",
    "created signalled": "whoever started it may go on",
    "wait_io_event": "do what other threads ask for, sleep while there is nothing to do",
    "resume": "it may run: from wait_io_event to cpu_exec",
    "pause": "it is out of KVM_RUN and stays out",
    "halt": "the guest executed HLT, and nothing in the kernel can wake it",
    "wake": "its HLT is over, by an interrupt, an NMI, wake() or a reset",
    "kick": "there is something for it to do: a signal gets it out of KVM_RUN, a bell wakes it in wait_io_event",
    "unplug": "it is to leave the machine",
    "handle_guest_debug": "a breakpoint or single step that nobody took: the machine ends",
    "destroy_vcpu": "unmap kvm_run and park the fd: KVM never creates the same id twice",
    "destroyed signalled": "the thread ends",
    RUN: "enter the guest; it runs on this thread until something has to be done for it",
    "KVM_GET_API_VERSION": "is it a KVM, and the one that all programs know? It says 12",
    "KVM_CHECK_EXTENSION": "does this KVM have a capability, or how many of something?",
    "KVM_ENABLE_CAP": "turn on what is off unless asked for",
    "KVM_GET_VCPU_MMAP_SIZE": "how much of a vCPU's fd to map: struct kvm_run and the pages behind it",
    "KVM_CREATE_VM": "a machine without memory and processors, and an fd for it",
    "KVM_SET_IDENTITY_MAP_ADDR": "a page of guest addresses that Intel processors need for real mode",
    "KVM_SET_TSS_ADDR": "three more of them",
    "KVM_SET_USER_MEMORY_REGION": "memory of this process becomes the guest's RAM",
    "KVM_CREATE_IRQCHIP": "interrupt controllers in the kernel: two PICs, an IOAPIC, a local APIC for each vCPU",
    "KVM_CREATE_PIT2": "the timer of a PC, in the kernel",
    "KVM_SET_GSI_ROUTING": "which interrupt line leads where",
    "KVM_IRQ_LINE": "a device raises or lowers its interrupt line",
    "KVM_SIGNAL_MSI": "an interrupt as a message to a local APIC",
    "KVM_GET_SUPPORTED_CPUID": "which features can this KVM show a guest?",
    "KVM_CREATE_VCPU": "a new vCPU in the kernel, and an fd for it",
    "KVM_SET_TSC_KHZ": "the rate of its time-stamp counter",
    "KVM_GET_TSC_KHZ": "the rate of its time-stamp counter",
    "KVM_X86_GET_MCE_CAP_SUPPORTED": "how can this KVM report machine checks?",
    "KVM_X86_SETUP_MCE": "the banks that report machine checks",
    "KVM_SET_MSRS": "model-specific registers",
    "KVM_GET_MSRS": "model-specific registers",
    "KVM_SET_LAPIC": "its local APIC",
    "KVM_GET_LAPIC": "its local APIC",
    "KVM_SET_MP_STATE": "does it run, or wait for a SIPI?",
    "KVM_GET_MP_STATE": "does it run, or wait for a SIPI?",
    "KVM_GET_SREGS": "segments and control registers, as KVM has them",
    "KVM_SET_SREGS": "segments, control registers: the mode that it starts in",
    "KVM_GET_REGS": "general registers, as KVM has them",
    "KVM_SET_REGS": "general registers, and where it starts",
    "KVM_KVMCLOCK_CTRL": "tell the guest that it was paused, so that it does not think that it hung",
    "KVM_GET_STATS_FD": "an fd to read KVM's own statistics from",
}


class Explain:
    """Makes a readable line of each step for `say`, which must not block.

    What happens again and again gets one line, save changes of state. `_lock` guards the note of what had its line.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._lock = threading.Lock()
        self._told: set[tuple[int, str]] = set()
        self._exits: dict[int, int] = {}
        self._origin = 0  # when the first step was

    def tell(self, event: Event) -> None:
        """Tell of a step that begins, a moment, or an ioctl that was made."""
        name, track = event.name, event.track
        if name == "init_vcpu":
            self._forget(track)
        about = f" ({event.told})" if event.told and event.told != f"vCPU {track}" else ""
        if (name in AGAIN or name.startswith("KVM_")) and not self._is_new(track, name + about):
            return
        before, _, after = event.told.partition(" -> ")
        if after and before == after:
            return  # it was so already
        meaning = MEANINGS.get(name, "")
        self._line(event, f"{name}{about}{': ' if meaning else ''}{meaning}")

    def exit(self, event: Event) -> None:
        """Tell of an exit that is the first of its kind, before it is served."""
        with self._lock:
            told = self._exits[event.track] = self._exits.get(event.track, 0) + 1
        what = f"exit {event.name}{' ' if event.told else ''}{event.told}"
        if told <= MOST_EXITS:
            self._line(event, f"{what}: the guest is out, we serve it; the first of its kind")
        elif told == MOST_EXITS + 1:
            self._line(event, f"{what}: and no more of its exits are told; --stats counts them")

    def _line(self, event: Event, line: str) -> None:
        self._origin = self._origin or event.start
        who = f"vCPU {event.track}" if event.track >= 0 else threading.current_thread().name
        self._say(f"{(event.start - self._origin) / 1e6:9.3f} ms  {who:<10}  {line}")

    def _is_new(self, track: int, what: str) -> bool:
        with self._lock:
            new = (track, what) not in self._told
            self._told.add((track, what))
        return new

    def _forget(self, track: int) -> None:
        """Tell all of it again: a new life begins."""
        with self._lock:
            self._told = {(whose, what) for whose, what in self._told if whose != track}
