//! Item 31: whoever is killed, and after whichever step, nothing is left: what husk does not remove because it is dead, `husk gc`
//! does.
//!
//! A step is a system call that changes something outside of its process, or what the process is and may do. A run that nobody
//! disturbs says which there are, and who lives at each; then each cycle is one run that is disturbed at one step of one process, by
//! a SIGKILL of that process or of another. `HUSK_CYCLES` says how many cycles a test makes: few are spread over the steps; from as many
//! as there are steps on, each is there, and then each with every victim that there is. A thousand take an emulated machine twelve
//! minutes: `HUSK_CYCLES=1000 HUSK_TESTS_DEADLINE=3600 make test FILTER=item_31`.

use husk_tests::footprint::Footprint;
use husk_tests::husk::{Husk, Outcome, binary};
use husk_tests::payload;
use husk_tests::scratch::Scratch;
use husk_tests::tracer::{Call, Interest, Tracer, Verdict};
use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long all processes of a run may take to end. Frozen by nobody, they end within seconds.
const DEADLINE: Duration = Duration::from_secs(40);
/// Cycles of a test unless `HUSK_CYCLES` says otherwise.
const CYCLES: usize = 40;

/// `husk run` with some options, to be run again and again.
pub(crate) struct Subject {
    scratch: Scratch,
    options: Vec<String>,
    command: Vec<&'static str>,
}

/// Kill this role when that one is about to make that call.
#[derive(Debug, Clone)]
struct Cut {
    victim: String,
    role: String,
    place: usize,
}

impl Subject {
    pub(crate) fn new(scratch: Scratch, options: &[&str], command: &[&'static str]) -> Self {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Self { scratch, options, command: command.to_vec() }
    }

    /// Runs it under `judge`, to the end of the last process.
    #[track_caller]
    pub(crate) fn run(
        &self,
        interest: Interest,
        judge: impl FnMut(&Call, &BTreeSet<String>) -> Verdict,
    ) -> Outcome {
        let streams = [self.scratch.name("stdout"), self.scratch.name("stderr")];
        let [stdout, stderr] = streams.each_ref().map(|path| std::fs::File::create(path).unwrap());
        let mut command = Command::new(binary());
        command.arg("run").args(&self.options).arg("--").args(&self.command);
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let started = Instant::now();
        let status = Tracer::start(command, interest, DEADLINE).after_kill(collect).run(judge);
        let [stdout, stderr] = streams.map(|path| std::fs::read(path).unwrap());
        Outcome {
            status: status.code().unwrap_or_else(|| 1000 + status.signal().unwrap_or_default()),
            stdout,
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            took: started.elapsed(),
        }
    }

    /// Its steps when nobody disturbs it, and who lives at each.
    fn steps(&self) -> Vec<(Call, BTreeSet<String>)> {
        let mut steps: Vec<(Call, BTreeSet<String>)> = Vec::new();
        let mut last = std::collections::BTreeMap::new();
        nothing_is_ready();
        let outcome = self.run(Interest::Steps, |call, living| {
            // Forty capabilities are given up one by one: one step.
            let kind = (call.number, call.args[0]);
            if last.insert(call.role.clone(), kind) != Some(kind) || call.number != libc::SYS_prctl {
                steps.push((call.clone(), living.clone()));
            }
            Verdict::Go
        });
        let roles: BTreeSet<_> = steps.iter().map(|(call, _)| call.role.clone()).collect();
        assert!(roles.contains("husk-runtime"), "{roles:?} {outcome:?}");
        steps
    }

    /// One cycle; whether the victim was there to be killed.
    #[track_caller]
    fn cut(&self, before: &Footprint, cut: &Cut) -> bool {
        let mut killed = false;
        nothing_is_ready();
        let outcome = self.run(Interest::Steps, |call, living| {
            if killed || call.role != cut.role || call.place != cut.place || !living.contains(&cut.victim) {
                return Verdict::Go;
            }
            killed = true;
            Verdict::Kill(cut.victim.clone())
        });
        if outcome.status == 1009 {
            assert!(killed && cut.victim == "husk", "{cut:?}: husk was killed: {outcome:?}");
            // A child of husk's that has executed nothing yet has husk's lock: until it has ended the sandbox counts as alive.
            if cut.role.starts_with("husk+") {
                collect("husk");
            }
        } else {
            // husk lives, so it has removed everything itself, and said in one line what went wrong, if anything did.
            let told = outcome.status != 125 || outcome.stderr.starts_with("husk: ");
            assert!(told && !outcome.stderr.contains("panicked"), "{cut:?}: {outcome:?}");
            assert!(matches!(outcome.status, 3 | 125), "{cut:?}: {outcome:?}");
        }
        let restored = std::panic::catch_unwind(|| before.assert_restored());
        restored.unwrap_or_else(|_| panic!("{cut:?}: {outcome:?}"));
        assert!(!self.scratch.path().join("vsock").exists(), "{cut:?}: the socket is left: {outcome:?}");
        killed
    }
}

/// `husk gc`, at the moment when husk is dead and nobody else knows of it yet.
fn collect(killed: &str) {
    if killed == "husk" {
        Husk::new(["gc"]).output().expect_status(0);
    }
}

/// Each time all that a sandbox finds ready is made anew: the steps are the same, and making it is among them.
fn nothing_is_ready() {
    Husk::new(["gc", "--all"]).output().expect_status(0);
}

/// How many cycles a test is to make.
pub(crate) fn cycles(usual: usize) -> usize {
    std::env::var("HUSK_CYCLES").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Each step once, its victims taken in turn; then each step with each of the others that live at it.
fn cuts(steps: &[(Call, BTreeSet<String>)]) -> Vec<Cut> {
    let at = |call: &Call, victim: &String| Cut {
        victim: victim.clone(),
        role: call.role.clone(),
        place: call.place,
    };
    let turn = |number: usize, living: &BTreeSet<String>| living.iter().nth(number % living.len()).cloned();
    let mut cuts = Vec::new();
    for (number, (call, living)) in steps.iter().enumerate() {
        cuts.extend(turn(number, living).map(|victim| at(call, &victim)));
    }
    for (number, (call, living)) in steps.iter().enumerate() {
        let first = turn(number, living);
        cuts.extend(living.iter().filter(|&victim| Some(victim) != first.as_ref()).map(|it| at(call, it)));
    }
    cuts
}

/// So many of these, in their order: spread over all of them if there are more, from the beginning again if there are fewer.
pub(crate) fn spread<T>(all: &[T], count: usize) -> impl Iterator<Item = &T> {
    let step = (all.len() / count.max(1)).max(1);
    all.iter().step_by(step).cycle().take(count)
}

/// Makes `count` cycles.
#[track_caller]
fn make(subject: &Subject, steps: &[(Call, BTreeSet<String>)], count: usize) {
    Husk::new(["gc"]).output().expect_status(0);
    let cuts = cuts(steps);
    // Each step once comes first.
    let wanted = if count <= steps.len() { &cuts[..steps.len()] } else { &cuts[..] };
    let (before, started, mut killed) = (Footprint::now(), Instant::now(), 0);
    let mut victims = BTreeSet::new();
    for cut in spread(wanted, count) {
        killed += usize::from(subject.cut(&before, cut));
        victims.insert(cut.victim.as_str());
    }
    let (steps, cuts) = (steps.len(), cuts.len());
    println!(
        "{count} cycles, {killed} kills, in {:?}; there are {steps} steps and {cuts} pairs of step and victim: {victims:?}",
        started.elapsed()
    );
    assert!(killed * 10 >= count * 9, "only {killed} of {count} were killed");
}

#[test]
fn item_31_whoever_of_a_sandbox_is_killed_after_whichever_step_nothing_is_left() {
    let scratch = Scratch::new();
    let kernel = scratch.file("kernel", &payload::triple_fault());
    let vsock = scratch.name("vsock");
    let subject = Subject::new(scratch, &["--kernel", &kernel, "--vsock", &vsock], &["true"]);
    let steps = subject.steps();
    for role in ["husk", "husk+", "husk-jailer", "husk-jailer+", "husk-runtime"] {
        assert!(steps.iter().any(|(call, _)| call.role == role), "no {role} was seen");
    }
    make(&subject, &steps, cycles(CYCLES));
}

#[test]
fn item_31_whoever_serves_a_volume_or_a_network_is_killed_and_nothing_is_left() {
    let scratch = Scratch::new();
    let kernel = scratch.file("kernel", &payload::endless_loop());
    let volume = scratch.name("volume");
    std::fs::create_dir(&volume).unwrap();
    let (volume, vsock) = (format!("{volume}:/v"), scratch.name("vsock"));
    let options = [
        "--kernel",
        &kernel,
        "--boot-timeout",
        "1500ms",
        "--volume",
        &volume,
        "--net",
        "user",
        "--vsock",
        &vsock,
    ];
    let subject = Subject::new(scratch, &options, &["true"]);
    // What a sandbox without them does not have as well.
    let known = ["husk", "husk-jailer", "husk-jailer+", "husk-runtime"];
    let steps = subject.steps();
    let own: Vec<_> = steps.into_iter().filter(|(call, _)| !known.contains(&call.role.as_str())).collect();
    for role in ["husk-fs", "passt"] {
        assert!(own.iter().any(|(call, _)| call.role == role), "no {role} was seen");
    }
    make(&subject, &own, cycles(CYCLES / 4));
}

#[test]
fn item_31_whoever_is_killed_while_a_guest_runs_nothing_is_left() {
    let subject = Subject::new(Scratch::new(), &[], &["sh", "-c", "echo up; cat /etc/passwd; exit 3"]);
    let mut steps = subject.steps();
    // What is before that, the others disturb.
    let first = steps.iter().position(|(call, _)| call.role == "husk-runtime").unwrap();
    steps.drain(..first);
    assert!(steps.iter().any(|(call, _)| call.role == "husk"), "husk never spoke to the guest");
    make(&subject, &steps, cycles(CYCLES / 8));
}
