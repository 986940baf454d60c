//! A program and all that descends from it, held at each system call of interest: to be killed there, or to be told that the
//! call failed.
//!
//! Owns every process and thread that the program makes, from its first instruction to its end: none outlives the value, and
//! a run that does not end by itself within its deadline is killed and has failed. A seccomp filter of the tracer's own picks the
//! calls, so that what is of no interest runs at full speed; it lies below whatever filters the program loads.
//! Invariant: a call is judged before it is made, once.

mod filter;
mod tracee;
mod watch;

use filter::{filter, only_opens};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::PoisonError;
use std::time::Duration;
use tracee::{go_on, kill, registers, request, submit, wait, wait_for};
use watch::Watch;

/// What is of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Calls that change something outside of the calling process, or its standing: each is a step.
    Steps,
    /// Every call.
    All,
}

/// One call, before it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Whose it is: `husk` for the program itself; the first word of the command line of what was executed since, with `#2` if
    /// there is another one; `+` behind it for a clone that has executed nothing yet.
    pub role: String,
    /// How many calls of interest this role has made before.
    pub place: usize,
    /// `SYS_…`.
    pub number: libc::c_long,
    /// Its arguments.
    pub args: [u64; 6],
}

/// What is to become of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is made.
    Go,
    /// It is not made, and returns this error.
    Fail(i32),
    /// The process of this role is killed first.
    Kill(String),
}

#[derive(Debug, Clone)]
struct Task {
    process: libc::pid_t,
    role: String,
}

/// What runs under trace.
pub struct Tracer {
    child: Child,
    tasks: BTreeMap<libc::pid_t, Task>,
    /// Stopped before their parent told of them.
    early: BTreeSet<libc::pid_t>,
    /// Caused a fault once.
    faulted: BTreeSet<libc::pid_t>,
    places: BTreeMap<String, usize>,
    names: BTreeMap<String, usize>,
    status: Option<ExitStatus>,
    interest: Interest,
    after_kill: Option<fn(&str)>,
    watch: Watch,
}

impl Tracer {
    /// Starts `command` as the role `husk`. It may run for as long as `deadline`.
    ///
    /// # Panics
    /// It cannot be started, or not be traced.
    #[must_use]
    #[track_caller]
    pub fn start(mut command: Command, interest: Interest, deadline: Duration) -> Self {
        let program = filter(interest);
        #[expect(unsafe_code, reason = "between fork and exec")]
        // SAFETY: the closure makes system calls alone, on a program that was made before the fork.
        unsafe {
            command.pre_exec(move || submit(&program));
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let pid = libc::pid_t::try_from(child.id()).unwrap_or_default();
        let mut tracer = Self {
            child,
            tasks: BTreeMap::new(),
            early: BTreeSet::new(),
            faulted: BTreeSet::new(),
            places: BTreeMap::new(),
            names: BTreeMap::new(),
            status: None,
            interest,
            after_kill: None,
            watch: Watch::new(deadline),
        };
        // Its own execution stops it, which `spawn` has waited for.
        let (stopped, status) = wait(pid);
        assert!(stopped == pid && libc::WIFSTOPPED(status), "the program is not stopped: {status:#x}");
        let options = libc::PTRACE_O_TRACEFORK
            | libc::PTRACE_O_TRACEVFORK
            | libc::PTRACE_O_TRACECLONE
            | libc::PTRACE_O_TRACEEXEC
            | libc::PTRACE_O_TRACESECCOMP
            | libc::PTRACE_O_EXITKILL;
        let options = usize::try_from(options).unwrap_or_default();
        request(libc::PTRACE_SETOPTIONS, pid, options).unwrap_or_else(|error| panic!("tracing: {error}"));
        tracer.adopt(pid, pid, "husk".into());
        go_on(pid, 0);
        tracer
    }

    /// The program's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What is done once the process of a role was killed and is dead, while all others stand where they stood: the worst moment for
    /// it. It hears the role.
    #[must_use]
    pub fn after_kill(mut self, act: fn(&str)) -> Self {
        self.after_kill = Some(act);
        self
    }

    /// Runs all to their end; `judge` is asked about each call of interest, and told which roles live. The program's own status.
    ///
    /// # Panics
    /// Something did not end in time.
    #[track_caller]
    pub fn run(mut self, mut judge: impl FnMut(&Call, &BTreeSet<String>) -> Verdict) -> ExitStatus {
        while !self.tasks.is_empty() {
            let (pid, status) = wait(-1);
            if pid < 0 {
                break;
            }
            if libc::WIFSTOPPED(status) {
                self.stopped(pid, status, &mut judge);
            } else {
                self.ended(pid, status);
            }
        }
        let late = self.watch.end();
        let status = self.status.unwrap_or_else(|| panic!("the program's end was never seen"));
        assert!(!late, "not all had ended in time: {:?}", self.places);
        status
    }

    fn adopt(&mut self, pid: libc::pid_t, process: libc::pid_t, role: String) {
        self.tasks.insert(pid, Task { process, role });
        self.watch.processes.lock().unwrap_or_else(PoisonError::into_inner).insert(process);
    }

    fn ended(&mut self, pid: libc::pid_t, status: i32) {
        if u32::try_from(pid) == Ok(self.child.id()) {
            self.status = Some(ExitStatus::from_raw(status));
        }
        self.early.remove(&pid);
        let Some(task) = self.tasks.remove(&pid) else { return };
        if !self.tasks.values().any(|other| other.process == task.process) {
            self.watch.processes.lock().unwrap_or_else(PoisonError::into_inner).remove(&task.process);
        }
    }

    fn stopped(
        &mut self,
        pid: libc::pid_t,
        status: i32,
        judge: &mut impl FnMut(&Call, &BTreeSet<String>) -> Verdict,
    ) {
        let signal = libc::WSTOPSIG(status);
        if !self.tasks.contains_key(&pid) {
            self.early.insert(pid);
            return;
        }
        match status >> 16 {
            0 if signal == libc::SIGSTOP || signal == libc::SIGTRAP => go_on(pid, 0),
            0 => self.signalled(pid, signal),
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
                self.cloned(pid);
                go_on(pid, 0);
            }
            libc::PTRACE_EVENT_EXEC => {
                self.executed(pid);
                go_on(pid, 0);
            }
            libc::PTRACE_EVENT_SECCOMP => self.calls(pid, judge),
            _ => go_on(pid, 0),
        }
    }

    /// Passes a signal on. The first process of a PID namespace is spared by the fault that it causes as long as it is traced, and
    /// would meet it again without end: the second one of a kind is its end, as the first would be without a tracer.
    fn signalled(&mut self, pid: libc::pid_t, signal: i32) {
        let is_fault = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE].contains(&signal);
        if is_fault && !self.faulted.insert(pid) {
            kill(self.tasks.get(&pid).map_or(pid, |task| task.process));
        }
        go_on(pid, signal);
    }

    /// `parent` has made a process or a thread, which the kernel stops at its start.
    fn cloned(&mut self, parent: libc::pid_t) {
        let mut message: libc::c_ulong = 0;
        let at = (&raw mut message).expose_provenance();
        if request(libc::PTRACE_GETEVENTMSG, parent, at).is_err() {
            return;
        }
        let Ok(pid) = libc::pid_t::try_from(message) else { return };
        let Some(maker) = self.tasks.get(&parent).cloned() else { return };
        let group = crate::processes::status(&format!("/proc/{pid}"), "Tgid").parse().unwrap_or(pid);
        let role = if group == maker.process { maker.role } else { self.named(format!("{}+", maker.role)) };
        self.adopt(pid, group, role);
        if self.early.remove(&pid) {
            go_on(pid, 0);
        }
    }

    fn executed(&mut self, pid: libc::pid_t) {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let word = line.split(|&byte| byte == 0).next().unwrap_or_default();
        let word = String::from_utf8_lossy(word);
        let name = word.rsplit('/').next().unwrap_or_default().to_owned();
        let role = self.named(name);
        // Its other threads, if it had any, are gone without a word.
        self.tasks.retain(|&other, task| other == pid || task.process != pid);
        self.adopt(pid, pid, role);
    }

    fn named(&mut self, name: String) -> String {
        let count = self.names.entry(name.clone()).or_default();
        *count += 1;
        if *count == 1 { name } else { format!("{name}#{count}") }
    }

    /// Waits until a process that was killed has given up all that it had. Its threads are reaped, for the first process of a PID
    /// namespace waits for that; itself it is a zombie until the next look at the tracees.
    fn await_death(&mut self, process: libc::pid_t) {
        for _ in 0..5000 {
            let threads = self.tasks.iter().filter(|&(&pid, task)| task.process == process && pid != process);
            let threads: Vec<_> = threads.map(|(&pid, _)| pid).collect();
            for thread in threads {
                let (waited, status) = wait_for(thread, libc::__WALL | libc::WNOHANG);
                if waited == thread && !libc::WIFSTOPPED(status) {
                    self.ended(thread, status);
                }
            }
            let state = crate::processes::status(&format!("/proc/{process}"), "State");
            if state.is_empty() || state.starts_with('Z') {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn calls(&mut self, pid: libc::pid_t, judge: &mut impl FnMut(&Call, &BTreeSet<String>) -> Verdict) {
        let Some(mut registers) = registers(pid) else { return };
        let number = libc::c_long::from_ne_bytes(registers.orig_rax.to_ne_bytes());
        let args = [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9];
        if self.interest == Interest::Steps && only_opens(number, &args) {
            return go_on(pid, 0);
        }
        let Some(task) = self.tasks.get(&pid) else { return };
        let place = self.places.entry(task.role.clone()).or_default();
        let call = Call { role: task.role.clone(), place: *place, number, args };
        *place += 1;
        let living = self.tasks.values().map(|task| task.role.clone()).collect();
        match judge(&call, &living) {
            Verdict::Go => {}
            Verdict::Fail(errno) => {
                // No such call: the kernel makes none, and returns what is in the register.
                registers.orig_rax = u64::MAX;
                registers.rax = u64::from_ne_bytes(i64::from(-errno).to_ne_bytes());
                let at = (&raw mut registers).expose_provenance();
                drop(request(libc::PTRACE_SETREGS, pid, at));
            }
            Verdict::Kill(role) => {
                let victims: BTreeSet<_> =
                    self.tasks.values().filter(|task| task.role == role).map(|task| task.process).collect();
                for &victim in &victims {
                    kill(victim);
                    self.await_death(victim);
                }
                self.after_kill.filter(|_| !victims.is_empty()).into_iter().for_each(|act| act(&role));
            }
        }
        go_on(pid, 0);
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let processes = self.watch.processes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        processes.into_iter().for_each(kill);
    }
}
