//! The filters on real threads: the running kernel lets each rule's call through, and none of its neighbours.
//!
//! Each role has a thread of its own, which makes the calls with arguments that no kernel takes (-1 wherever the rule does
//! not say otherwise), so a call that is let through fails. Here SIGSYS is counted instead of ending the process.

use super::{expected, matching, number_of};
use crate::tests::bpf::{Call, Verdict};
use crate::{Role, table};
use std::cell::Cell;
use std::mem::MaybeUninit;

thread_local! {
    static TRAPPED: Cell<bool> = const { Cell::new(false) };
}

/// Calls that do not come back whatever their arguments are, or would start a thread without a stack.
const NOT_MADE: [&str; 4] = ["clone", "exit", "exit_group", "rt_sigreturn"];

/// `uretprobe` and `uprobe` of x86_64: no filter is asked since Linux 6.14, and who calls them from his own code gets SIGILL.
const PAST_ALL_FILTERS: std::ops::RangeInclusive<u32> = 335..=336;

extern "C" fn on_trap(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    TRAPPED.set(true);
}

#[expect(unsafe_code, reason = "a signal handler")]
fn count_traps() {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all-zero bytes are a valid `sigaction`.
    let action = unsafe { action.assume_init_mut() };
    action.sa_sigaction = on_trap as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the action outlives the call, and its handler touches a constant thread-local alone.
    let set = unsafe { libc::sigaction(libc::SIGSYS, action, std::ptr::null_mut()) };
    assert_eq!(set, 0);
}

/// Whether the kernel let the call through.
fn let_through(call: &Call) -> bool {
    TRAPPED.set(false);
    let [a, b, c, d, e, f] = call.args;
    #[expect(unsafe_code, reason = "any call at all")]
    // SAFETY: its pointers are not ones of this process, and where a length counts it is not one either; the calls that
    // would do something all the same are not made.
    unsafe {
        libc::syscall(call.number.into(), a, b, c, d, e, f);
    }
    !TRAPPED.get()
}

/// The rule's call with nothing else in it that a kernel would take.
fn harmless(rule: &crate::Rule) -> Call {
    let mut call = matching(rule);
    for index in 0..call.args.len() {
        if rule.args.iter().all(|arg| usize::from(arg.index) != index) {
            call.args[index] = u64::MAX;
        }
    }
    call
}

/// Every call that a rule allows, and every one beside it that no rule does.
fn calls(role: Role) -> (Vec<Call>, Vec<Call>) {
    let (mut allowed, mut denied) = (Vec::new(), Vec::new());
    for rule in table(role).iter().filter(|rule| !NOT_MADE.contains(&rule.call)) {
        let call = harmless(rule);
        allowed.push(call);
        for arg in rule.args {
            for bit in 0..64 {
                let mut near = call;
                near.args[usize::from(arg.index)] ^= 1 << bit;
                if expected(role, &near) == Verdict::Trap {
                    denied.push(near);
                }
            }
        }
    }
    for number in (0..512).filter(|number| !PAST_ALL_FILTERS.contains(number)) {
        let call = Call { number, args: [u64::MAX; 6] };
        if table(role).iter().all(|rule| number_of(rule.call) != number) {
            denied.push(call);
        }
    }
    (allowed, denied)
}

/// What the kernel decides otherwise than the table, behind all filters of a thread of this role.
fn wrong(role: Role) -> Vec<Call> {
    let (allowed, denied) = calls(role);
    let mut wrong = Vec::with_capacity(allowed.len() + denied.len());
    for filter in role.stack() {
        crate::install(*filter).unwrap();
    }
    wrong.extend(allowed.into_iter().filter(|call| !let_through(call)));
    wrong.extend(denied.into_iter().filter(let_through));
    wrong
}

#[test]
fn item_27_the_kernel_lets_each_rules_call_through_and_its_neighbours_not() {
    count_traps();
    for role in Role::ALL {
        let (allowed, denied) = calls(role);
        assert!(
            allowed.len() >= 15 && denied.len() > 400,
            "{role:?}: {} and {}",
            allowed.len(),
            denied.len()
        );
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            tell.send(wrong(role)).unwrap();
            // To end is a call that a running thread is not allowed.
            loop {
                std::thread::park();
            }
        });
        let wrong = told.recv().unwrap();
        assert!(wrong.is_empty(), "{role:?}: {wrong:?}");
    }
}
