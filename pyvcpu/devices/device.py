"""The contract of a device, and what helps to keep it: its state is plain data that it gives and takes back."""

from __future__ import annotations

from ..errors import PyvcpuError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Mapping
    from typing import Any, Protocol

    State = dict[str, Any]  # of int, bool, str, bytes and None, and of lists and dicts of these
    Check = Callable[[str, object], Any]  # where a value stands, and the value -> the value; raises StateDataError

    class Device(Protocol):
        """What a machine knows of each of its devices, whatever bus it is on.

        Nobody else uses the device during these calls, except that the host may feed it: the machine stands still.
        They may be made in any thread.
        """

        @property
        def name(self) -> str:
            """What messages call the device."""

        def reset(self) -> None:
            """Return to the state after power-on, with the interrupt lines low."""

        def state(self) -> State:
            """Return all that the guest can see of the device, now or later, as plain data.

            What belongs to the host is not in it: files, callables, and what the machine was built with.
            """

        def restore(self, data: object) -> None:
            """Take over what state() of a device like this one gave, and drive the interrupt lines to their levels.

            The data may come from a hostile file: it is checked before anything changes. Raise StateDataError for what
            no device could have given.
            """


class StateDataError(PyvcpuError, ValueError):
    """State data that no device of this kind could have given; the device is as it was before."""


class Stateless:
    """The part of the contract that concerns state, for a device that has none."""

    __slots__ = ()
    name = ""

    def reset(self) -> None:
        """Do nothing: the device is as it was after power-on."""

    def state(self) -> State:
        """Return an empty dict."""
        return {}

    def restore(self, data: object) -> None:
        """Check that `data` is what state() gave."""
        checked(self.name, {}, data)


def checked(name: str, fields: Mapping[str, Check], data: object) -> State:
    """Return `data`, a dict with exactly the keys of `fields`, each with a value that its check accepts.

    Raise StateDataError, which names the device and the place in its state, for anything else.
    """
    values: State = record(fields)(name, data)
    return values


# Checks. Types are compared exactly: a subclass may do anything when it is used.


def integer(lowest: int, highest: int) -> Check:
    """Accept a whole number in these bounds, which are part of them."""

    def check(where: str, value: object) -> int:
        if type(value) is not int:
            raise _wrong(where, "a whole number", value)
        if not lowest <= value <= highest:
            raise StateDataError(f"{where} must be from {lowest} to {highest}, not {_number(value)}")
        return value

    return check


def bits(mask: int) -> Check:
    """Accept a number that has no bits outside of `mask`."""

    def check(where: str, value: object) -> int:
        if type(value) is not int:
            raise _wrong(where, "a whole number", value)
        if value & ~mask:
            raise StateDataError(f"{where} must have no bits other than {mask:#x}, not {_number(value)}")
        return value

    return check


def flag(where: str, value: object) -> bool:
    """Accept True and False."""
    if type(value) is not bool:
        raise _wrong(where, "true or false", value)
    return value


def octets(shortest: int, longest: int) -> Check:
    """Accept so many bytes."""

    def check(where: str, value: object) -> bytes:
        if type(value) is not bytes:
            raise _wrong(where, "bytes", value)
        _check_length(where, "bytes", len(value), shortest, longest)
        return value

    return check


def optional(check: Check) -> Check:
    """Accept None, and what `check` accepts."""
    return lambda where, value: None if value is None else check(where, value)


def sequence(check: Check, shortest: int, longest: int) -> Check:
    """Accept a list of so many values that `check` accepts."""

    def check_all(where: str, value: object) -> list[Any]:
        if type(value) is not list:
            raise _wrong(where, "a list", value)
        _check_length(where, "values", len(value), shortest, longest)
        return [check(f"{where}[{index}]", element) for index, element in enumerate(value)]

    return check_all


def record(fields: Mapping[str, Check]) -> Check:
    """Accept a dict with exactly these keys, each with a value that its check accepts."""

    def check(where: str, value: object) -> State:
        if type(value) is not dict:
            raise _wrong(where, "a dict", value)
        for key in value:
            if type(key) is not str or key not in fields:
                raise StateDataError(f"{where} must have no key {_cut(key)}; is it of another device or version?")
        for key in fields:
            if key not in value:
                raise StateDataError(f"{where} must have a key {key!r}; is it of another device or version?")
        return {key: check(f"{where}: {key}", value[key]) for key, check in fields.items()}

    return check


def anything(where: str, value: object) -> object:
    """Accept any value: another device will check it."""
    return value


def _check_length(where: str, what: str, length: int, shortest: int, longest: int) -> None:
    if not shortest <= length <= longest:
        wanted = str(shortest) if shortest == longest else f"{shortest} to {longest}"
        raise StateDataError(f"{where} must hold {wanted} {what}, not {length}")


def _wrong(where: str, wanted: str, value: object) -> StateDataError:
    return StateDataError(f"{where} must be {wanted}, not {type(value).__name__}")


def _number(value: int) -> str:
    """Return a number as text: one of many digits takes long to write, or cannot be written."""
    return hex(value) if value.bit_length() <= 128 else f"a number of {value.bit_length()} bits"


def _cut(key: object) -> str:
    return repr(key[:40]) if type(key) is str else f"of type {type(key).__name__}"
