"""Topology: how many processors in how many packages and cores, and the APIC id of each. Pure.

An APIC id is the processor's place written in bits: package, core, thread, each as wide as the next power of two (SDM
vol. 3A section 9.9; APM vol. 3 appendix E.5). With counts that are no powers of two, ids have gaps.
"""

from __future__ import annotations

from ..errors import ConfigError

PARTS = ("cpus", "sockets", "cores", "threads", "maxcpus")
EXAMPLE = "such as 4, or 8,sockets=2,cores=2,threads=2"


class Topology:
    """`cpus` processors at the start, room for `maxcpus`, in `sockets` of `cores` of `threads` each.

    Processors are numbered thread by thread, then core by core, then package by package.
    """

    __slots__ = ("cores", "cpus", "maxcpus", "sockets", "threads")

    def __init__(self, cpus: int, sockets: int, cores: int, threads: int, maxcpus: int) -> None:
        self.cpus = cpus
        self.sockets = sockets
        self.cores = cores
        self.threads = threads
        self.maxcpus = maxcpus

    @property
    def core_shift(self) -> int:
        """How many bits of an APIC id number the threads of a core."""
        return (self.threads - 1).bit_length()

    @property
    def package_shift(self) -> int:
        """How many bits of an APIC id number the processors of a package."""
        return self.core_shift + (self.cores - 1).bit_length()

    @property
    def per_package(self) -> int:
        """How many processors a package has."""
        return self.cores * self.threads

    def place(self, index: int) -> tuple[int, int, int]:
        """Return package, core within it, and thread within that, of processor `index`."""
        core, thread = divmod(index, self.threads)
        package, core = divmod(core, self.cores)
        return package, core, thread

    def apic_id(self, index: int) -> int:
        """Return the APIC id of processor `index`."""
        package, core, thread = self.place(index)
        return package << self.package_shift | core << self.core_shift | thread

    def __repr__(self) -> str:
        return f"<Topology {', '.join(f'{part}={getattr(self, part)}' for part in PARTS)}>"


def parse(text: str | int) -> Topology:
    """Read `[cpus=]N[,sockets=S][,cores=C][,threads=T][,maxcpus=M]`; raise ConfigError for what contradicts itself.

    What is left out is filled in as QEMU does since 6.2: sockets 1, then threads 1, then cores what remains.

    >>> parse("8,sockets=2,threads=2")
    <Topology cpus=8, sockets=2, cores=2, threads=2, maxcpus=8>
    """
    if isinstance(text, int):
        count = _count("cpus", text)
        return Topology(count, 1, count, 1, count)
    return _parse(text)


def _parse(text: str) -> Topology:
    given: dict[str, int] = {}
    for position, item in enumerate(text.split(",")):
        name, equals, value = item.partition("=")
        if not equals:
            if position:
                raise ConfigError(f"--smp takes one bare number, and that first, {EXAMPLE}; not {text!r}")
            name, value = "cpus", item
        name = name.strip()
        if name not in PARTS:
            raise ConfigError(f"--smp knows {', '.join(PARTS)}, not {name!r}{_meant(name)}")
        if name in given:
            raise ConfigError(f"--smp says {name} twice")
        given[name] = _number(name, value.strip())
    return complete(**given)


def _meant(name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, PARTS, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _number(name: str, value: str) -> int:
    digits = value.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 9:
        what = "a whole number" if name == "cpus" else f"a whole number for {name}"
        raise ConfigError(f"--smp takes {what}, not {value!r}; {EXAMPLE}")
    return _count(name, int(value))


def _count(name: str, value: int) -> int:
    if value < 1:
        what = "a machine has at least 1 vCPU" if name == "cpus" else f"{name} must be at least 1"
        raise ConfigError(f"{what}, not {value}")
    return value


def complete(cpus: int = 0, sockets: int = 0, cores: int = 0, threads: int = 0, maxcpus: int = 0) -> Topology:
    """Fill in what is 0, and raise ConfigError where the parts do not make the whole."""
    limit = maxcpus or cpus
    if not limit:
        limit = (sockets or 1) * (cores or 1) * (threads or 1)
    if cpus > limit:
        raise ConfigError(f"maxcpus must be at least the number of vCPUs at the start, {cpus}, not {maxcpus}")
    said = ", ".join(f"{n}={v}" for n, v in (("sockets", sockets), ("cores", cores), ("threads", threads)) if v)
    if not cores:
        sockets, threads = sockets or 1, threads or 1
        cores = limit // (sockets * threads)
    elif not sockets:
        threads = threads or 1
        sockets = limit // (cores * threads)
    elif not threads:
        threads = limit // (sockets * cores)
    product = sockets * cores * threads
    if product and cpus and product == cpus < limit and limit % (cores * threads) == 0:
        # What is said is what is there at the start; what can be plugged lies in further packages.
        sockets, product = limit // (cores * threads), limit
    if product != limit:
        parts = f"sockets * cores * threads must be {limit}, the {'maxcpus' if maxcpus else 'number of vCPUs'}"
        found = f"{sockets} * {cores} * {threads} = {product}" if product else f"{said}, which is more already"
        raise ConfigError(f"{parts}, not {found}")
    return Topology(cpus or limit, sockets, cores, threads, limit)
