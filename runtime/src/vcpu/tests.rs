use super::*;
use std::time::Duration;

fn exits() -> Exits {
    Exits::new().unwrap()
}

#[test]
fn the_first_end_is_the_machines() {
    let exits = exits();
    assert_eq!(exits.take(), None);
    exits.end(VcpuEnd::Reset);
    exits.end(VcpuEnd::Shutdown);
    assert_eq!(exits.event().read().unwrap(), 2);
    assert_eq!(exits.take(), Some(VcpuEnd::Reset));
    assert_eq!(exits.take(), None);
}

#[test]
fn the_entry_is_told_once() {
    let exits = exits();
    assert_eq!(exits.take_entered(), None);
    exits.entering();
    assert!(exits.take_entered().is_some_and(|at| at > 0));
    assert_eq!(exits.take_entered(), None);
}

#[test]
fn a_kick_before_the_thread_waits_is_not_lost() {
    let mut run = kvm_bindings::kvm_run::default();
    let gate = Arc::new(Gate::new(&mut run));
    let handle = VcpuHandle::new(Arc::clone(&gate));
    handle.run();
    handle.kick().unwrap();
    assert_eq!(run.immediate_exit, 1);
    handle.run();
    gate.wait();
    assert_eq!(run.immediate_exit, 0, "passing the gate clears the request to leave");
}

#[test]
fn a_closed_gate_holds_and_an_open_one_does_not() {
    // Leaked: the gate's pointer must stay valid for as long as the process.
    let run = Box::leak(Box::<kvm_bindings::kvm_run>::default());
    let gate = Arc::new(Gate::new(run));
    let handle = VcpuHandle::new(Arc::clone(&gate));
    let (passed, told) = std::sync::mpsc::channel();
    #[expect(clippy::disallowed_methods, reason = "a test's own thread")]
    std::thread::spawn(move || {
        gate.wait();
        passed.send(()).unwrap();
    });
    assert!(told.recv_timeout(Duration::from_millis(50)).is_err());
    handle.run();
    told.recv_timeout(Duration::from_secs(10)).unwrap();
}
