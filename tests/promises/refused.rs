//! Items 29 and 30: whatever the host's kernel refuses of a start, the sandbox ends with 125 and one line that says what was
//! refused, or does without; and what is only interrupted is done again.
//!
//! A run that nobody disturbs says which system calls a start makes, in each of its processes. Then, one run each, a call is not
//! made and fails as it does where memory, descriptors, room or threads are exhausted. `HUSK_CYCLES` says how many runs a test
//! makes; it begins with the first call of each kind in each process.

use crate::kills::{Subject, cycles, spread};
use husk_tests::footprint::Footprint;
use husk_tests::husk::{Husk, Outcome};
use husk_tests::payload;
use husk_tests::scratch::Scratch;
use husk_tests::tracer::{Call, Interest, Verdict};
use std::collections::BTreeSet;

/// `KVM_CREATE_VM` (linux/kvm.h).
const KVM_CREATE_VM: u64 = 0xae01;
/// Runs of a test unless `HUSK_CYCLES` says otherwise.
const RUNS: usize = 12;

/// What a call says when the host has no more of what it takes; `None`: it takes nothing that can be exhausted.
fn exhausted(call: &Call) -> Option<i32> {
    // Whoever closed or filled standard error does not want to know.
    if call.role == "husk" && call.number == libc::SYS_write && call.args[0] == 2 {
        return None;
    }
    Some(match call.number {
        libc::SYS_mmap | libc::SYS_mremap | libc::SYS_mprotect | libc::SYS_madvise => libc::ENOMEM,
        libc::SYS_ioctl | libc::SYS_seccomp | libc::SYS_landlock_restrict_self => libc::ENOMEM,
        libc::SYS_fsmount | libc::SYS_move_mount | libc::SYS_pivot_root | libc::SYS_unshare => libc::ENOMEM,
        libc::SYS_clone | libc::SYS_clone3 | libc::SYS_fork | libc::SYS_vfork | libc::SYS_setresuid => {
            libc::EAGAIN
        }
        libc::SYS_open | libc::SYS_openat | libc::SYS_openat2 | libc::SYS_fsopen => libc::EMFILE,
        libc::SYS_socketpair | libc::SYS_socket | libc::SYS_eventfd2 | libc::SYS_epoll_create1 => {
            libc::EMFILE
        }
        libc::SYS_memfd_create | libc::SYS_pipe2 | libc::SYS_timerfd_create | libc::SYS_dup => libc::EMFILE,
        libc::SYS_pidfd_open | libc::SYS_signalfd4 | libc::SYS_landlock_create_ruleset => libc::EMFILE,
        libc::SYS_fcntl if call.args[1] == 1030 => libc::EMFILE,
        libc::SYS_write | libc::SYS_mkdir | libc::SYS_symlink | libc::SYS_rename | libc::SYS_renameat2 => {
            libc::ENOSPC
        }
        libc::SYS_ftruncate | libc::SYS_fallocate | libc::SYS_pwrite64 | libc::SYS_copy_file_range => {
            libc::ENOSPC
        }
        libc::SYS_sendto | libc::SYS_sendmsg => libc::ENOBUFS,
        libc::SYS_epoll_ctl | libc::SYS_bind | libc::SYS_pread64 | libc::SYS_preadv => libc::ENOMEM,
        _ => return None,
    })
}

/// Whether a signal that comes at the wrong moment lets this call fail, as the kernel documents it.
fn is_interrupted(call: &Call) -> Option<i32> {
    let is = match call.number {
        libc::SYS_read | libc::SYS_write | libc::SYS_recvmsg | libc::SYS_recvfrom | libc::SYS_sendto => true,
        libc::SYS_sendmsg
        | libc::SYS_poll
        | libc::SYS_ppoll
        | libc::SYS_epoll_wait
        | libc::SYS_epoll_pwait => true,
        libc::SYS_waitid | libc::SYS_wait4 | libc::SYS_flock | libc::SYS_getrandom => true,
        libc::SYS_ioctl => call.args[1] == KVM_CREATE_VM,
        _ => false,
    };
    is.then_some(libc::EINTR)
}

/// One call of an undisturbed run, and how it is to fail.
#[derive(Debug, Clone)]
struct Fault {
    call: Call,
    errno: i32,
}

/// What tells one kind of call from another: the number, and what the call is a multiplexer of.
fn kind(call: &Call) -> (String, libc::c_long, u64) {
    let part = match call.number {
        libc::SYS_ioctl => call.args[1],
        libc::SYS_mmap => call.args[3],
        libc::SYS_prctl | libc::SYS_seccomp => call.args[0],
        _ => 0,
    };
    (call.role.clone(), call.number, part)
}

/// All calls that can fail so, the first of each kind before the others.
fn faults(subject: &Subject, how: fn(&Call) -> Option<i32>) -> Vec<Fault> {
    let (mut first, mut rest, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    let outcome = subject.run(Interest::All, |call, _| {
        if let Some(errno) = how(call) {
            let fault = Fault { call: call.clone(), errno };
            if seen.insert(kind(call)) { first.push(fault) } else { rest.push(fault) }
        }
        Verdict::Go
    });
    assert!(seen.iter().any(|(role, ..)| role == "husk-runtime"), "{outcome:?}");
    first.append(&mut rest);
    first
}

/// One run in which this call fails, once; whether it came to the call.
fn refuse(subject: &Subject, fault: &Fault) -> (bool, Outcome) {
    let mut refused = false;
    let outcome = subject.run(Interest::All, |call, _| {
        let is = call.place >= fault.call.place && kind(call) == kind(&fault.call);
        if refused || !is {
            return Verdict::Go;
        }
        refused = true;
        Verdict::Fail(fault.errno)
    });
    (refused, outcome)
}

fn subject() -> Subject {
    let scratch = Scratch::new();
    let kernel = scratch.file("kernel", &payload::triple_fault());
    let disk = scratch.name("disk.ext4");
    husk_tests::rootfs::ext4(&disk, 4);
    let (drive, vsock) = (format!("{disk}:/x:rw"), scratch.name("vsock"));
    Subject::new(scratch, &["--kernel", &kernel, "--json", "--drive", &drive, "--vsock", &vsock], &["true"])
}

/// What is wrong with how husk told of a run; `None`: nothing.
fn told(fault: &Fault, outcome: &Outcome, right: impl Fn(&str, &str) -> bool) -> Option<String> {
    let last = outcome.stderr.lines().last().unwrap_or_default();
    let result: serde_json::Value = serde_json::from_str(last).unwrap_or_default();
    let word = |key: &str| result[key].as_str().unwrap_or_default();
    let is =
        outcome.status == 125 && !outcome.stderr.contains("panicked") && right(word("fault"), word("error"));
    (!is).then(|| {
        format!("{fault:?}: {} {}", outcome.status, outcome.stderr.chars().take(400).collect::<String>())
    })
}

/// Whether it was memory that the standard library takes for itself and ends a process for that has none of: husk says so with
/// 125, before its first instruction by SIGABRT, and is then like a husk that was killed; a runtime tells of an abort.
fn has_no_memory(fault: &Fault, outcome: &Outcome) -> bool {
    let said = |words: &str| outcome.stderr.contains(words);
    let is_early = outcome.status == 1000 + libc::SIGABRT && said("alternative stack");
    let told = outcome.status == 125 && (said("memory allocation of ") || said("alternative stack"));
    let aborted = outcome.status == 125 && fault.call.role == "husk-runtime" && said("abort in a thread");
    fault.errno == libc::ENOMEM && (is_early || told || aborted)
}

#[test]
fn items_29_30_whatever_call_of_a_start_is_refused_it_is_told_and_nothing_is_left() {
    let subject = subject();
    Husk::new(["gc"]).output().expect_status(0);
    let before = Footprint::now();
    let (faults, mut came, mut wrong) = (faults(&subject, exhausted), 0, Vec::new());
    let runs = cycles(RUNS);
    for fault in spread(&faults, runs) {
        let (refused, outcome) = refuse(&subject, fault);
        came += usize::from(refused);
        if !has_no_memory(fault, &outcome) {
            wrong.extend(told(fault, &outcome, |blamed, why| !why.is_empty() && blamed != "bug"));
        }
        // What husk could not remove itself because of it, the next collection does.
        Husk::new(["gc"]).output().expect_status(0);
        let restored = std::panic::catch_unwind(|| before.assert_restored());
        restored.unwrap_or_else(|_| panic!("{fault:?}: {outcome:?}"));
    }
    println!("{runs} runs of {} calls that can be refused; {came} were", faults.len());
    assert!(wrong.is_empty(), "{} are not told as they should be: {wrong:#?}", wrong.len());
    assert!(came * 10 >= runs * 9, "only {came} of {runs} calls were made");
}

#[test]
fn item_29_what_a_signal_interrupts_is_done_again() {
    let subject = subject();
    let (faults, mut came, mut wrong) = (faults(&subject, is_interrupted), 0, Vec::new());
    let create = faults.iter().find(|fault| fault.call.number == libc::SYS_ioctl);
    let runs = cycles(RUNS);
    for fault in create.into_iter().chain(spread(&faults, runs)) {
        let (refused, outcome) = refuse(&subject, fault);
        came += usize::from(refused);
        wrong.extend(told(fault, &outcome, |blamed, why| blamed == "guest" && why.contains("reset itself")));
    }
    println!("{runs} runs of {} calls that can be interrupted; {came} were", faults.len());
    assert!(wrong.is_empty(), "{} ended otherwise: {wrong:#?}", wrong.len());
    assert!(create.is_some() && came * 10 >= runs * 9, "only {came} of {runs} calls were made");
}
