"""Cpu: what processor was asked for, as `--cpu` says it. Reading it needs no KVM; models.py makes leaves of it."""

from __future__ import annotations

from ..errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterable

MODELS = ("host", "x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4")
POLICIES = ("check", "enforce")
SWITCHES = ("kvm", "hv")
NUMBERS = {"phys-bits": (32, 52), "tsc-khz": (1, 0x7FFF_FFFF)}
FORM = "MODEL[,+feature][,-feature][,check|enforce][,phys-bits=N][,kvm=on|off][,hv=on|off][,tsc-khz=N]"


class Cpu:
    """A processor as it was asked for.

    `model`: one of MODELS. `plus`, `minus`: features to show and to hide, by the names of x86.features. `policy`:
    check (warn of features that are missing), enforce (refuse them) or "". `phys_bits`, `tsc_khz`: 0 for the host's.
    `kvm`: show KVM's paravirtual leaves. `hv`: show those of Hyper-V.
    """

    __slots__ = ("hv", "kvm", "minus", "model", "phys_bits", "plus", "policy", "tsc_khz")

    def __init__(
        self,
        model: str = "host",
        plus: Iterable[str] = (),
        minus: Iterable[str] = (),
        policy: str = "",
        *,
        phys_bits: int = 0,
        kvm: bool = True,
        hv: bool = False,
        tsc_khz: int = 0,
    ) -> None:
        self.model = model
        self.plus = frozenset(plus)
        self.minus = frozenset(minus)
        self.policy = policy
        self.phys_bits = phys_bits
        self.kvm = kvm
        self.hv = hv
        self.tsc_khz = tsc_khz

    @property
    def is_plain(self) -> bool:
        """Whether its features are just those that KVM supports: nothing to expand, filter or check."""
        return self.model == "host" and not self.plus and not self.minus


def parse(text: str) -> Cpu:
    """Read `MODEL[,+feature][,-feature][,check|enforce][,name=value]...`; raise ConfigError for what makes no sense."""
    if text == "host":
        return Cpu()
    model, *items = (item.strip() for item in text.split(","))
    if model not in MODELS:
        raise ConfigError(_no_model(model))
    cpu, seen = Cpu(model), set[str]()
    for item in items:
        name, equals, value = item.partition("=")
        if item.startswith(("+", "-")):
            _feature(cpu, item)
        elif item in POLICIES:
            if cpu.policy and cpu.policy != item:
                raise ConfigError("--cpu takes check or enforce, not both")
            cpu.policy = item
        elif not equals or name not in (*SWITCHES, *NUMBERS):
            raise ConfigError(_no_option(name, item))
        elif name in seen:
            raise ConfigError(f"--cpu says {name} twice")
        else:
            seen.add(name)
            setattr(cpu, name.replace("-", "_"), _value(name, value))
    if cpu.plus:
        from .features import refuse_contradiction

        refuse_contradiction(cpu.plus, cpu.minus)
    return cpu


def _value(name: str, value: str) -> int | bool:
    if name in SWITCHES:
        if value not in ("on", "off"):
            raise ConfigError(f"--cpu {name}= takes on or off, not {value!r}")
        return value == "on"
    low, high = NUMBERS[name]
    digits = value.isascii() and value.isdigit() and len(value) <= 10
    if not digits or not low <= int(value) <= high:
        raise ConfigError(f"--cpu {name}= takes a number from {low} to {high}, not {value!r}")
    return int(value)


def _feature(cpu: Cpu, item: str) -> None:
    from .features import PLACE, canonical

    name = canonical(item[1:])
    if name is None:
        raise ConfigError(f"--cpu knows no feature {item[1:]!r}{_meant(item, PLACE)}")
    if item[0] == "+":
        cpu.plus |= {name}
    else:
        cpu.minus |= {name}


def _no_model(model: str) -> str:
    known = f"--cpu starts with a model, one of {', '.join(MODELS)}"
    if model.startswith(("+", "-")) or "=" in model or model in POLICIES:
        return f"{known}; did you mean host,{model}?"
    close = _nearest(model, MODELS)
    return f"{known}, not {model!r}" + (f"; did you mean {close}?" if close else "")


def _meant(item: str, features: Iterable[str]) -> str:
    name = item[1:].lower()
    if name in SWITCHES:
        return f"; did you mean {name}={'on' if item[0] == '+' else 'off'}?"
    if name in (*NUMBERS, *POLICIES):
        return f"; did you mean {name}{'=N' if name in NUMBERS else ''}?"
    close = _nearest(name.replace("-", "_"), features)
    return f"; did you mean {item[0]}{close}?" if close else "; the names are those of /proc/cpuinfo"


def _no_option(name: str, item: str) -> str:
    from .features import canonical

    told = f"--cpu knows no {item!r}"
    if canonical(name):
        sign = "-" if item.partition("=")[2] in ("off", "no", "0") else "+"
        return f"{told}; did you mean {sign}{canonical(name)}?"
    values = {**dict.fromkeys(POLICIES, ""), **dict.fromkeys(SWITCHES, "=on or =off"), **dict.fromkeys(NUMBERS, "=N")}
    close = _nearest(name, values)
    return told + (f"; did you mean {close}{values[close]}?" if close else f": it takes {FORM}")


def _nearest(name: str, known: Iterable[str]) -> str | None:
    from difflib import get_close_matches

    close = get_close_matches(name.lower(), list(known), 1)
    return close[0] if close else None
