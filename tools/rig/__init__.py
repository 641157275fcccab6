"""The rig: a Debian kernel with a real kvm_amd, inside QEMU's software emulation. See docs/rig.md."""
