"""Encrypted guests of AMD: the commands of KVM_MEMORY_ENCRYPT_OP for SEV, SEV-ES and SEV-SNP (asm/kvm.h).

Older headers leave the padding unnamed. Sources: Documentation/virt/kvm/x86/amd-memory-encryption.rst.
"""

from __future__ import annotations

from ctypes import c_ulong

from .base import IOR, IOWR, Struct, u8, u16, u32, u64

# kvm_sev_cmd.id
KVM_SEV_INIT = 0
KVM_SEV_ES_INIT = 1
KVM_SEV_LAUNCH_START = 2
KVM_SEV_LAUNCH_UPDATE_DATA = 3
KVM_SEV_LAUNCH_UPDATE_VMSA = 4
KVM_SEV_LAUNCH_SECRET = 5
KVM_SEV_LAUNCH_MEASURE = 6
KVM_SEV_LAUNCH_FINISH = 7
KVM_SEV_SEND_START = 8
KVM_SEV_SEND_UPDATE_DATA = 9
KVM_SEV_SEND_UPDATE_VMSA = 10
KVM_SEV_SEND_FINISH = 11
KVM_SEV_RECEIVE_START = 12
KVM_SEV_RECEIVE_UPDATE_DATA = 13
KVM_SEV_RECEIVE_UPDATE_VMSA = 14
KVM_SEV_RECEIVE_FINISH = 15
KVM_SEV_GUEST_STATUS = 16
KVM_SEV_DBG_DECRYPT = 17
KVM_SEV_DBG_ENCRYPT = 18
KVM_SEV_CERT_EXPORT = 19
KVM_SEV_GET_ATTESTATION_REPORT = 20
KVM_SEV_SEND_CANCEL = 21
KVM_SEV_INIT2 = 22
KVM_SEV_SNP_LAUNCH_START = 100
KVM_SEV_SNP_LAUNCH_UPDATE = 101
KVM_SEV_SNP_LAUNCH_FINISH = 102
KVM_SEV_SNP_ENABLE_REQ_CERTS = 103

# kvm_sev_snp_launch_update.type
KVM_SEV_PAGE_TYPE_INVALID = 0
KVM_SEV_SNP_PAGE_TYPE_NORMAL = 1
KVM_SEV_SNP_PAGE_TYPE_ZERO = 3
KVM_SEV_SNP_PAGE_TYPE_UNMEASURED = 4
KVM_SEV_SNP_PAGE_TYPE_SECRETS = 5
KVM_SEV_SNP_PAGE_TYPE_CPUID = 6

KVM_SEV_SNP_ID_BLOCK_SIZE = 96
KVM_SEV_SNP_ID_AUTH_SIZE = 4096
KVM_SEV_SNP_FINISH_DATA_SIZE = 32


class kvm_sev_cmd(Struct):
    """KVM_MEMORY_ENCRYPT_OP argument; `error` is what the firmware answers."""

    __slots__ = ()
    _fields_ = [("id", u32), ("pad0", u32), ("data", u64), ("error", u32), ("sev_fd", u32)]


class kvm_sev_init(Struct):
    """Data of KVM_SEV_INIT2."""

    __slots__ = ()
    _fields_ = [
        ("vmsa_features", u64),
        ("flags", u32),
        ("ghcb_version", u16),
        ("pad1", u16),
        ("pad2", u32 * 8),
    ]


class kvm_sev_launch_start(Struct):
    """Data of KVM_SEV_LAUNCH_START."""

    __slots__ = ()
    _fields_ = [
        ("handle", u32),
        ("policy", u32),
        ("dh_uaddr", u64),
        ("dh_len", u32),
        ("pad0", u32),
        ("session_uaddr", u64),
        ("session_len", u32),
        ("pad1", u32),
    ]


class kvm_sev_launch_update_data(Struct):
    """Data of KVM_SEV_LAUNCH_UPDATE_DATA."""

    __slots__ = ()
    _fields_ = [("uaddr", u64), ("len", u32), ("pad0", u32)]


class kvm_sev_launch_secret(Struct):
    """Data of KVM_SEV_LAUNCH_SECRET."""

    __slots__ = ()
    _fields_ = [
        ("hdr_uaddr", u64),
        ("hdr_len", u32),
        ("pad0", u32),
        ("guest_uaddr", u64),
        ("guest_len", u32),
        ("pad1", u32),
        ("trans_uaddr", u64),
        ("trans_len", u32),
        ("pad2", u32),
    ]


class kvm_sev_launch_measure(Struct):
    """Data of KVM_SEV_LAUNCH_MEASURE."""

    __slots__ = ()
    _fields_ = [("uaddr", u64), ("len", u32), ("pad0", u32)]


class kvm_sev_guest_status(Struct):
    """Data of KVM_SEV_GUEST_STATUS."""

    __slots__ = ()
    _fields_ = [("handle", u32), ("policy", u32), ("state", u32)]


class kvm_sev_dbg(Struct):
    """Data of KVM_SEV_DBG_DECRYPT and KVM_SEV_DBG_ENCRYPT."""

    __slots__ = ()
    _fields_ = [("src_uaddr", u64), ("dst_uaddr", u64), ("len", u32), ("pad0", u32)]


class kvm_sev_attestation_report(Struct):
    """Data of KVM_SEV_GET_ATTESTATION_REPORT."""

    __slots__ = ()
    _fields_ = [("mnonce", u8 * 16), ("uaddr", u64), ("len", u32), ("pad0", u32)]


class kvm_sev_send_start(Struct):
    """Data of KVM_SEV_SEND_START."""

    __slots__ = ()
    _fields_ = [
        ("policy", u32),
        ("pad0", u32),
        ("pdh_cert_uaddr", u64),
        ("pdh_cert_len", u32),
        ("pad1", u32),
        ("plat_certs_uaddr", u64),
        ("plat_certs_len", u32),
        ("pad2", u32),
        ("amd_certs_uaddr", u64),
        ("amd_certs_len", u32),
        ("pad3", u32),
        ("session_uaddr", u64),
        ("session_len", u32),
        ("pad4", u32),
    ]


class kvm_sev_send_update_data(Struct):
    """Data of KVM_SEV_SEND_UPDATE_DATA."""

    __slots__ = ()
    _fields_ = kvm_sev_launch_secret._fields_


class kvm_sev_receive_start(Struct):
    """Data of KVM_SEV_RECEIVE_START."""

    __slots__ = ()
    _fields_ = [
        ("handle", u32),
        ("policy", u32),
        ("pdh_uaddr", u64),
        ("pdh_len", u32),
        ("pad0", u32),
        ("session_uaddr", u64),
        ("session_len", u32),
        ("pad1", u32),
    ]


class kvm_sev_receive_update_data(Struct):
    """Data of KVM_SEV_RECEIVE_UPDATE_DATA."""

    __slots__ = ()
    _fields_ = kvm_sev_launch_secret._fields_


class kvm_sev_snp_launch_start(Struct):
    """Data of KVM_SEV_SNP_LAUNCH_START."""

    __slots__ = ()
    _fields_ = [("policy", u64), ("gosvw", u8 * 16), ("flags", u16), ("pad0", u8 * 6), ("pad1", u64 * 4)]


class kvm_sev_snp_launch_update(Struct):
    """Data of KVM_SEV_SNP_LAUNCH_UPDATE; the kernel moves it on as it goes."""

    __slots__ = ()
    _fields_ = [
        ("gfn_start", u64),
        ("uaddr", u64),
        ("len", u64),
        ("type", u8),
        ("pad0", u8),
        ("flags", u16),
        ("pad1", u32),
        ("pad2", u64 * 4),
    ]


class kvm_sev_snp_launch_finish(Struct):
    """Data of KVM_SEV_SNP_LAUNCH_FINISH."""

    __slots__ = ()
    _fields_ = [
        ("id_block_uaddr", u64),
        ("id_auth_uaddr", u64),
        ("id_block_en", u8),
        ("auth_key_en", u8),
        ("vcek_disabled", u8),
        ("host_data", u8 * KVM_SEV_SNP_FINISH_DATA_SIZE),
        ("pad0", u8 * 3),
        ("flags", u16),
        ("pad1", u64 * 4),
    ]


class kvm_enc_region(Struct):
    """KVM_MEMORY_ENCRYPT_REG_REGION, KVM_MEMORY_ENCRYPT_UNREG_REGION argument; `addr` is in this process."""

    __slots__ = ()
    _fields_ = [("addr", u64), ("size", u64)]


KVM_MEMORY_ENCRYPT_OP = IOWR("KVM_MEMORY_ENCRYPT_OP", 0xBA, c_ulong)
KVM_MEMORY_ENCRYPT_REG_REGION = IOR("KVM_MEMORY_ENCRYPT_REG_REGION", 0xBB, kvm_enc_region)
KVM_MEMORY_ENCRYPT_UNREG_REGION = IOR("KVM_MEMORY_ENCRYPT_UNREG_REGION", 0xBC, kvm_enc_region)
