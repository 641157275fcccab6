"""Methods that are imported when somebody first asks for them.

The kernel knows some 120 requests, and a boot makes a dozen of them. Loading the code of all would make every start
about 2 ms longer. So the rare methods of Kvm, VmFd and VcpuFd are plain functions in modules of their own, and the
class names each of them:

    if TYPE_CHECKING:
        from . import vm_irq
    else:
        vm_irq = LazyModule("pyvcpu.kvm.vm_irq")

    class VmFd(Fd):
        create_pit2 = vm_irq.create_pit2

A type checker sees a class with a function in it. At run time the class holds a LazyMethod, which puts that same
function in its place as soon as it is looked up, on the class or on an object.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import Any


class LazyMethod:
    """Stands in a class for a function of another module, until it is looked up."""

    __slots__ = ("_module", "_name")

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name

    def __get__(self, instance: object, owner: type) -> Any:
        """Put the function into the class that this stands in, and return what the class then gives.

        Needs no lock: two threads that come here at once find the same function, because a module is imported once,
        and it does not matter which of them puts it there, or that both do.
        """
        from importlib import import_module

        function = getattr(import_module(self._module), self._name)
        for kind in owner.__mro__:
            if vars(kind).get(self._name) is self:
                setattr(kind, self._name, function)
        return function if instance is None else function.__get__(instance, owner)

    def __repr__(self) -> str:
        return f"<{self._module}.{self._name}, not loaded yet>"


class LazyModule:
    """A module whose functions can be named before it is imported: each attribute is a LazyMethod."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> LazyMethod:
        return LazyMethod(self._name, name)
