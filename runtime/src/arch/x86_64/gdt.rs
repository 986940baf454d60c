//! Segments: descriptors for the guest's table and for KVM's segment registers, from one value.
//!
//! Source: Intel SDM volume 3, 3.4.5. Invariant: a register loaded here is what the guest would get by loading the same
//! selector from the table.

use kvm_bindings::kvm_segment;

/// Access and flag bits of a descriptor: type and S and DPL and P in the low byte, AVL, L, D/B, G in bits 12 to 15.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flags(pub(super) u16);

/// 64-bit code, execute and read.
pub(super) const CODE_64: Flags = Flags(0xa09b);
/// 32-bit code, execute and read.
pub(super) const CODE_32: Flags = Flags(0xc09b);
/// Data, read and write.
pub(super) const DATA: Flags = Flags(0xc093);
/// A busy 32-bit or 64-bit task state segment; byte granular.
pub(super) const TSS: Flags = Flags(0x008b);

/// A descriptor of `limit` units from address zero.
pub(super) fn descriptor(flags: Flags, limit: u32) -> u64 {
    let limit = u64::from(limit);
    (limit & 0xffff) | (u64::from(flags.0 & 0xf0ff) << 40) | ((limit >> 16 & 0xf) << 48)
}

/// The register for selector `index * 8`; `limit` is in bytes.
pub(super) fn segment(flags: Flags, index: u16, limit: u32) -> kvm_segment {
    let bit = |number: u16| u8::from(flags.0 >> number & 1 == 1);
    kvm_segment {
        base: 0,
        limit,
        selector: index * 8,
        type_: flags.0.to_le_bytes()[0] & 0xf,
        s: bit(4),
        dpl: flags.0.to_le_bytes()[0] >> 5 & 3,
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_linux_own() {
        // arch/x86/boot/pm.c: boot_gdt; arch/x86/include/asm/desc_defs.h.
        assert_eq!(descriptor(CODE_64, 0xfffff), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(DATA, 0xfffff), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(TSS, 0x67), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn registers_say_the_same() {
        let code = segment(CODE_64, 2, u32::MAX);
        assert_eq!((code.selector, code.type_, code.s, code.present), (0x10, 0xb, 1, 1));
        assert_eq!((code.l, code.db, code.g), (1, 0, 1));
        let tss = segment(TSS, 4, 0x67);
        assert_eq!((tss.type_, tss.s, tss.g), (0xb, 0, 0));
    }
}
