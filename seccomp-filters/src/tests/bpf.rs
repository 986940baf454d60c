//! Classic BPF as seccomp runs it: loads of 32-bit words of `struct seccomp_data`, masks, jumps, returns.
//! Source: Documentation/networking/filter.rst, linux/seccomp.h.

use crate::sock_filter;

#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) number: u32,
    pub(super) args: [u64; 6],
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow,
    Trap,
    Kill,
}

const NATIVE: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };

pub(super) fn run(program: &[sock_filter], call: &Call) -> Verdict {
    run_as(program, call, NATIVE)
}

pub(super) fn run_as(program: &[sock_filter], call: &Call, arch: u32) -> Verdict {
    let word = |offset: u32| -> u32 {
        let arg = |at: u32| call.args[usize::try_from((at - 16) / 8).unwrap()];
        match offset {
            0 => call.number,
            4 => arch,
            at if at % 8 == 0 => u32::try_from(arg(at) & 0xffff_ffff).unwrap(),
            at => u32::try_from(arg(at) >> 32).unwrap(),
        }
    };
    let mut accumulator = 0;
    let mut at = 0;
    for _ in 0..program.len() {
        let step = &program[at];
        at += 1;
        let jump = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
        match step.code {
            0x20 => accumulator = word(step.k),
            0x54 => accumulator &= step.k,
            0x05 => at += usize::try_from(step.k).unwrap(),
            0x15 => at += jump(accumulator == step.k),
            0x25 => at += jump(accumulator > step.k),
            0x35 => at += jump(accumulator >= step.k),
            0x06 => return verdict(step.k),
            code => panic!("instruction {code:#x} at {at}"),
        }
    }
    panic!("the program does not return")
}

fn verdict(value: u32) -> Verdict {
    match value {
        0x7fff_0000 => Verdict::Allow,
        0x0003_0000 => Verdict::Trap,
        0x8000_0000 => Verdict::Kill,
        other => panic!("verdict {other:#x}"),
    }
}
