"""The edge to C: no method cuts an integer, takes a negative one, or lets a wrong argument through to the kernel.

A kernel that answers 0 to everything and keeps what it was given stands in for the real one.
"""

from __future__ import annotations

import ctypes
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyvcpu.kvm import DeviceFd, Kvm, KvmError, LinuxKernel, VcpuFd, VmFd, abi
from pyvcpu.kvm.catalogue import entries
from pyvcpu.kvm.fd import Fd, fd_number, in_range
from pyvcpu.kvm.msrs import MsrFilterRange
from pyvcpu.kvm.routes import HvSintRoute, IrqchipRoute, MsiRoute, XenEvtchnRoute

CLASSES: tuple[type[Fd], ...] = (Kvm, VmFd, VcpuFd, DeviceFd)
# A value that no u32 holds; its bytes are found again wherever it went as a whole.
WIDE = 0x1_2345_6789
NEGATIVE, TOO_LARGE = -1, 1 << 64


class Recorder(LinuxKernel):
    """Answer 0, or 12 to KVM_GET_API_VERSION; keep the bytes of each argument."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bytes] = []
        self.ioctl = self._ioctl
        self.errno = lambda: 0

    def _ioctl(self, fd: int, number: int, argument: int) -> int:
        size = number >> 16 & 0x3FFF
        if size and argument:
            self.seen.append(ctypes.string_at(argument, size + 24))  # and the first of what follows a head
        else:
            self.seen.append(argument.to_bytes(8, "little"))
        if number == abi.KVM_SET_DEVICE_ATTR.number:
            self.seen.append(ctypes.string_at(abi.kvm_device_attr.from_address(argument).addr, 8))
        return 12 if number == abi.KVM_GET_API_VERSION.number else 0

    def open(self, path: str) -> int:
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        if fd:
            os.close(fd)


def made(kind: type[Fd]) -> Any:
    """Return an object of `kind` whose kernel is a Recorder."""
    kernel = Recorder()
    kvm = Kvm("nothing", kernel)
    kvm.close()
    vm = VmFd(kernel, -1, "", kvm)
    vm.slot_sizes[0] = 64 * 4096
    vm.dirty_ring_bytes = 4096
    kernel.seen.clear()
    objects: dict[type[Fd], Any] = {
        Kvm: kvm,
        VmFd: vm,
        VcpuFd: VcpuFd(kernel, -1, "vCPU 0", vm),
        DeviceFd: DeviceFd(kernel, -1, "", vm),
    }
    return objects[kind]


# How to put one wild number into a parameter that is not a plain integer, by its name.
SHAPES: dict[str, tuple[Callable[[int], object], ...]] = {
    "indices": (lambda n: [n],),
    "events": (lambda n: [n],),
    "debugreg": (lambda n: [n], lambda n: [0] * 7 + [n]),
    "values": (lambda n: [(n, 0)], lambda n: [(0, n)]),
    "blocked": (lambda n: [n],),
    "args": (lambda n: n,),
    "routes": (lambda n: [MsiRoute(n, 0, 0)], lambda n: [MsiRoute(0, n, 0)], lambda n: [IrqchipRoute(0, 0, n)]),
    "ranges": (lambda n: [MsrFilterRange(n, b"\1")], lambda n: [MsrFilterRange(0, b"\1", n)]),
}
XCRS: tuple[Callable[[int], object], ...] = (lambda n: {n: 0}, lambda n: {0: n})
# What a parameter gets while another one is wild.
PLAIN: dict[str, object] = {
    "indices": [],
    "events": [],
    "values": [],
    "routes": [],
    "bitmap": bytes(8),
    "data": b"",
    "entries": [],
    "area": bytes(4096),
    "registers": bytes(1024),
    "blocked": [],
    "debugreg": (),
    "resamplefd": None,
    "num_pages": None,
    "devid": None,
    "datamatch": None,
}
TAKES_ANY_TRUTH = {"pio", "test", "deny_others"}


def wild_calls(number: int) -> Iterator[tuple[type[Fd], str, str, Callable[[Any], object]]]:
    """Yield (class, method, parameter, call) for each place where an integer goes in."""
    for kind in CLASSES:
        for name, function in inspect.getmembers(kind, inspect.isfunction):
            if name.startswith("_") or name in ("ioctl", "create", "own", "close"):
                continue
            parameters = list(inspect.signature(function).parameters.values())[1:]
            for parameter in parameters:
                shapes = SHAPES.get(parameter.name, ())
                if name == "set_xcrs":
                    shapes = XCRS
                elif "int" in str(parameter.annotation) and parameter.name not in SHAPES:
                    shapes = (lambda n: n,)
                if parameter.name in TAKES_ANY_TRUTH:
                    continue
                for shape in shapes:
                    yield kind, name, parameter.name, call_with(name, parameters, parameter, shape, number)


def call_with(
    name: str, parameters: list[inspect.Parameter], wild: inspect.Parameter, shape: Callable[[int], object], number: int
) -> Callable[[Any], object]:
    def call(target: Any) -> object:
        positional: list[object] = []
        named: dict[str, object] = {}
        for parameter in parameters:
            plain = 0 if name == "signal_msi" and parameter.name == "data" else PLAIN.get(parameter.name, 0)
            value = shape(number) if parameter is wild else plain
            if parameter.kind is parameter.KEYWORD_ONLY:
                named[parameter.name] = value
            elif parameter.kind is parameter.VAR_POSITIONAL:
                positional += [value] if parameter is wild else []
            else:
                positional.append(value)
        return getattr(target, name)(*positional, **named)

    return call


CASES = [(kind, name, parameter, index) for index, (kind, name, parameter, _) in enumerate(wild_calls(0))]
IDS = [f"{kind.__name__}.{name}-{parameter}-{index}" for kind, name, parameter, index in CASES]


def case(index: int, number: int) -> Callable[[Any], object]:
    return list(wild_calls(number))[index][3]


def test_there_are_cases_for_every_kind_of_parameter() -> None:
    assert len(CASES) > 100
    assert set(SHAPES) <= {parameter for _, _, parameter, _ in CASES}


@pytest.mark.parametrize(("kind", "name", "parameter", "index"), CASES, ids=IDS)
@pytest.mark.parametrize("number", [NEGATIVE, TOO_LARGE, 1 << 200], ids=["negative", "too large", "far too large"])
def test_a_number_outside_of_every_range_never_reaches_the_kernel(
    kind: type[Fd], name: str, parameter: str, index: int, number: int
) -> None:
    target = made(kind)
    with pytest.raises(ValueError, match=r"must be|fit|whole|at most|size"):
        case(index, number)(target)
    assert target.kernel.seen == [] or name in ("set_xsave", "map_run")  # these ask for a size first


@pytest.mark.parametrize(("kind", "name", "parameter", "index"), CASES, ids=IDS)
def test_no_number_is_cut(kind: type[Fd], name: str, parameter: str, index: int) -> None:
    """A wide number is refused, or arrives whole."""
    target = made(kind)
    try:
        result = case(index, WIDE)(target)
    except (ValueError, KvmError):
        return
    if isinstance(result, Fd):
        result.close()
    sent = b"|".join(target.kernel.seen)
    in_two_halves = (WIDE & 0xFFFF_FFFF).to_bytes(4, "little") + (WIDE >> 32).to_bytes(4, "little")
    assert WIDE.to_bytes(8, "little") in sent or in_two_halves in sent


@pytest.mark.parametrize(("kind", "name", "parameter", "index"), CASES, ids=IDS)
@pytest.mark.parametrize("wrong", ["7", 7.0, b"7", object()], ids=["text", "float", "bytes", "object"])
def test_what_is_no_integer_is_refused(kind: type[Fd], name: str, parameter: str, index: int, wrong: Any) -> None:
    target = made(kind)
    with pytest.raises((TypeError, ValueError)):
        case(index, wrong)(target)
    assert target.kernel.seen == [] or name in ("set_xsave", "map_run")


STRUCTURES = [
    (entry.kind, entry.method)
    for entry in entries()
    if entry.method.startswith("set_") or entry.method.endswith("_set_attr") or entry.method == "x86_set_mce"
]


@pytest.mark.parametrize(("kind", "method"), STRUCTURES, ids=lambda value: str(value))
@pytest.mark.parametrize(
    "wrong", [abi.kvm_dtable(), None, "text", bytearray(8)], ids=["structure", "None", "text", "bytes"]
)
def test_a_wrong_structure_is_refused(kind: str, method: str, wrong: Any) -> None:
    """The kernel would read beyond its end."""
    target = made({cls.__name__: cls for cls in CLASSES}[kind])
    function = getattr(target, method)
    required = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if method == "set_signal_mask" and wrong is None:
        return  # None means the thread's own mask
    with pytest.raises((TypeError, ValueError)):
        function(*[wrong] * max(len(required), 1))
    assert target.kernel.seen == [] or method == "set_xsave"


def test_requests_take_what_belongs_to_them() -> None:
    vm = made(VmFd)
    with pytest.raises(TypeError, match="takes a kvm_irqfd"):
        vm.ioctl(abi.KVM_IRQFD, abi.kvm_regs())
    with pytest.raises(TypeError, match="takes a kvm_irqfd"):
        vm.ioctl(abi.KVM_IRQFD, 0x1000)  # an address
    with pytest.raises(TypeError, match="takes a kvm_irqfd"):
        vm.ioctl(abi.KVM_IRQFD, (ctypes.c_char * 5)())
    with pytest.raises(TypeError, match="takes a number"):
        vm.ioctl(abi.KVM_CREATE_IRQCHIP, abi.kvm_regs())
    with pytest.raises(ValueError, match="takes a number from 0"):
        vm.ioctl(abi.KVM_CREATE_IRQCHIP, -1)
    with pytest.raises(TypeError, match="must be an Ioctl"):
        vm.ioctl(0xAE80)
    assert vm.kernel.seen == []
    vm.ioctl(abi.KVM_IRQFD, (ctypes.c_char * 64)())
    assert len(vm.kernel.seen) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda n: IrqchipRoute(n, 0, 0),
        lambda n: IrqchipRoute(0, n, 0),
        lambda n: MsiRoute(0, 0, n),
        lambda n: MsiRoute(0, 0, 0, n),
        lambda n: HvSintRoute(0, n, 0),
        lambda n: HvSintRoute(0, 0, n),
        lambda n: XenEvtchnRoute(0, n, 0),
        lambda n: XenEvtchnRoute(0, 0, n),
        lambda n: XenEvtchnRoute(0, 0, 0, n),
    ],
)
def test_routes_hold_what_fits(make: Callable[[Any], object]) -> None:
    for number in (-1, 1 << 64, WIDE):
        with pytest.raises(ValueError, match="must be from 0"):
            make(number)
    with pytest.raises(TypeError, match="must be an integer"):
        make("7")


def test_helpers() -> None:
    assert in_range("x", 5, 5) == 5
    with pytest.raises(ValueError, match="x must be from 0 to 0x5, not 0x6"):
        in_range("x", 6, 5)
    with pytest.raises(ValueError, match="from 1 to 0x40"):
        in_range("a signal", 0, 64, 1)
    with open(os.devnull, "rb") as file:
        assert fd_number("a file", file) == file.fileno()
    with pytest.raises(TypeError, match="open file"):
        fd_number("a file", "name")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ValueError, match="must be from 0"):
        fd_number("a file", Fd(LinuxKernel(), -1))  # closed


def test_what_a_wrong_number_would_have_meant_is_not_kept() -> None:
    """A slot that the kernel refused must not be taken for one."""
    vm = made(VmFd)
    with pytest.raises(ValueError, match="guest_phys_addr"):
        vm.set_user_memory_region(3, -1, 4096, 0)
    assert 3 not in vm.slot_sizes
    with pytest.raises(ValueError, match="slot 3"):
        vm.get_dirty_log(3)


def test_a_message_goes_in_two_halves() -> None:
    vm = made(VmFd)
    vm.signal_msi(WIDE, 7)
    assert vm.kernel.seen[0][:12] == WIDE.to_bytes(8, "little") + (7).to_bytes(4, "little")
