"""Types of registers in target descriptions: flags by their bits, and vectors. Data."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterator, Mapping

# name -> (lowest bit, bits, name) of each field (SDM vol. 1 section 3.4.3 and 10.2.3, vol. 3A section 2.5).
FLAGS: dict[str, tuple[tuple[int, str], ...]] = {
    "eflags": (
        (0, "CF"), (1, ""), (2, "PF"), (4, "AF"), (6, "ZF"), (7, "SF"), (8, "TF"), (9, "IF"), (10, "DF"), (11, "OF"),
        (14, "NT"), (16, "RF"), (17, "VM"), (18, "AC"), (19, "VIF"), (20, "VIP"), (21, "ID"),
    ),
    "mxcsr": (
        (0, "IE"), (1, "DE"), (2, "ZE"), (3, "OE"), (4, "UE"), (5, "PE"), (6, "DAZ"), (7, "IM"), (8, "DM"), (9, "ZM"),
        (10, "OM"), (11, "UM"), (12, "PM"), (15, "FZ"),
    ),
    "cr0": (
        (0, "PE"), (1, "MP"), (2, "EM"), (3, "TS"), (4, "ET"), (5, "NE"), (16, "WP"), (18, "AM"), (29, "NW"),
        (30, "CD"), (31, "PG"),
    ),
    "cr4": (
        (0, "VME"), (1, "PVI"), (2, "TSD"), (3, "DE"), (4, "PSE"), (5, "PAE"), (6, "MCE"), (7, "PGE"), (8, "PCE"),
        (9, "OSFXSR"), (10, "OSXMMEXCPT"), (11, "UMIP"), (12, "LA57"), (13, "VMXE"), (14, "SMXE"), (16, "FSGSBASE"),
        (17, "PCIDE"), (18, "OSXSAVE"), (19, "KL"), (20, "SMEP"), (21, "SMAP"), (22, "PKE"), (23, "CET"), (24, "PKS"),
    ),
    "efer": (
        (0, "SCE"), (8, "LME"), (10, "LMA"), (11, "NXE"), (12, "SVME"), (13, "LMSLE"), (14, "FFXSR"), (15, "TCE"),
    ),
}  # fmt: skip
VECTORS = {16: "vec128", 32: "vec256"}
ELEMENTS = (
    ("float", "ieee_single", 4),
    ("double", "ieee_double", 8),
    ("int8", "int8", 1),
    ("int16", "int16", 2),
    ("int32", "int32", 4),
    ("int64", "int64", 8),
)


def definitions(used: Mapping[str, int]) -> Iterator[str]:
    """Yield the XML of the types in `used`, name -> size in bytes, that gdb does not bring along."""
    for name, size in used.items():
        flags = name.partition("_")[2]
        if flags in FLAGS:
            yield f'<flags id="{name}" size="{size}">'
            yield from (f'<field name="{field}" start="{bit}" end="{bit}"/>' for bit, field in FLAGS[flags])
            yield "</flags>"
        elif name in VECTORS.values():
            yield from _union(name, size)


def _union(name: str, size: int) -> Iterator[str]:
    fields = []
    for label, kind, width in ELEMENTS:
        count = size // width
        yield f'<vector id="v{count}_{kind}" type="{kind}" count="{count}"/>'
        fields.append(f'<field name="v{count}_{label}" type="v{count}_{kind}"/>')
    yield f'<union id="{name}">'
    yield from fields
    if size == 16:
        yield '<field name="uint128" type="uint128"/>'
    yield "</union>"
