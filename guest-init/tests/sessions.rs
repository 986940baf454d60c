//! Sessions as the host sees them: real processes, pipes and terminals, under the real binary.

mod host;

use host::{Guest, last, last_sh, run, side};
use husk_protocol::exec::{
    Exec, ExecFailureKind, Exit, Frame, Hello, INITIAL_CREDIT, MAX_PAYLOAD, Stream, User, VERSION,
};
use std::io::Write;
use std::time::{Duration, Instant};

fn exec_failure(exec: Exec) -> (ExecFailureKind, String) {
    let mut guest = Guest::start();
    guest.say(&Frame::Exec(1, exec));
    let heard = guest.hear_until(|frame| matches!(frame, Frame::ExecFailed(..)));
    assert!(!heard.contains(&Frame::Started(1)), "{heard:?}");
    let Some(Frame::ExecFailed(1, failure)) = heard.last() else { unreachable!() };
    (failure.kind, failure.message.clone())
}

#[test]
fn output_status_and_environment_come_through() {
    let ran = run(last_sh("echo out; echo err >&2; pwd; exit 7"));
    assert_eq!(ran.stdout, b"out\n/\n");
    assert_eq!(ran.stderr, b"err\n");
    assert_eq!(ran.exit, Some(Exit::Status(7)));
    let mut exec = last(&["env"]);
    exec.env = vec![b"A=b=c".to_vec(), b"HOME=/h".to_vec()];
    exec.cwd = b"/usr".to_vec();
    let expected = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nHOME=/h\nA=b=c\n";
    assert_eq!(String::from_utf8(run(exec).stdout).unwrap(), expected);
}

#[test]
fn a_signal_that_ends_a_command_is_told_from_a_status() {
    assert_eq!(run(last_sh("kill -9 $$")).exit, Some(Exit::Signal(9)));
    assert_eq!(run(last_sh("exit 255")).exit, Some(Exit::Status(255)));
}

#[test]
fn a_command_starts_with_clean_signals_descriptors_and_a_session_of_its_own() {
    let status = String::from_utf8(run(last(&["cat", "/proc/self/status"])).stdout).unwrap();
    // Signals 32 and 33 are the C library's own; whoever runs the tests may ignore them.
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap() & !(0b11 << 31)
    };
    assert_eq!((mask("SigBlk:"), mask("SigIgn:"), mask("SigCgt:")), (0, 0, 0));
    let listed = String::from_utf8(run(last_sh("ls /proc/$$/fd")).stdout).unwrap();
    let mut open: Vec<i32> = listed.split_whitespace().map(|fd| fd.parse().unwrap()).collect();
    // What whoever runs the tests left open comes through husk-init; it opened nothing of that itself.
    open.retain(|fd| !host::inherited().contains(fd));
    assert_eq!(open, [0, 1, 2]);
    let stat = String::from_utf8(run(last(&["cat", "/proc/self/stat"])).stdout).unwrap();
    let fields: Vec<&str> = stat.split_whitespace().collect();
    assert_eq!(
        (fields[0], fields[0]),
        (fields[4], fields[5]),
        "process group and session are its own: {stat}"
    );
}

#[test]
fn without_stdin_a_command_reads_nothing() {
    assert_eq!(run(last_sh("cat; readlink /proc/self/fd/0")).stdout, b"/dev/null\n");
}

#[test]
fn what_cannot_be_executed_is_told_apart_and_named() {
    let dir = std::env::temp_dir().join(format!("husk-init-exec-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    std::fs::write(path("plain"), "echo hi\n").unwrap();
    std::fs::write(path("orphan"), "#!/no/such/interpreter\n").unwrap();
    std::fs::write(path("text"), "neither\n").unwrap();
    for name in ["orphan", "text"] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path(name), mode).unwrap();
    }
    let fails = |program: &str| exec_failure(last(&[program]));
    assert_eq!(
        fails("no-such-program"),
        (ExecFailureKind::NotFound, "no-such-program: not found in PATH".into())
    );
    assert_eq!(fails("/no/such").0, ExecFailureKind::NotFound);
    assert_eq!(fails(""), (ExecFailureKind::NotFound, ": not found in PATH".into()));
    let (kind, message) = fails(&path("plain"));
    assert_eq!(kind, ExecFailureKind::NotExecutable);
    assert!(message.ends_with("plain: Permission denied (os error 13)"), "{message}");
    assert_eq!(fails("/tmp").0, ExecFailureKind::NotExecutable);
    let (kind, message) = fails(&path("orphan"));
    assert!(kind == ExecFailureKind::NotFound && message.contains("interpreter"), "{message}");
    let (kind, message) = fails(&path("text"));
    assert!(kind == ExecFailureKind::NotExecutable && message.contains("#! line"), "{message}");
    // Found along PATH but not executable, and nothing better after it: as a shell, 126.
    let mut exec = last(&["plain"]);
    exec.env = vec![format!("PATH={}:/bin", dir.display()).into_bytes()];
    assert_eq!(exec_failure(exec).0, ExecFailureKind::NotExecutable);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_setup_that_fails_names_what_failed() {
    let mut exec = last(&["true"]);
    exec.cwd = b"/no/such/directory".to_vec();
    let (kind, message) = exec_failure(exec);
    assert_eq!(kind, ExecFailureKind::Setup);
    assert_eq!(message, "working directory /no/such/directory: No such file or directory (os error 2)");
    let mut exec = last(&["true"]);
    exec.user = User::Spec("no-such-user".into());
    let (kind, message) = exec_failure(exec);
    assert!(kind == ExecFailureKind::Setup && message.contains("\"no-such-user\""), "{message}");
    let (kind, message) = exec_failure(last(&[]));
    assert!(kind == ExecFailureKind::Setup && message.contains("empty"), "{message}");
}

#[test]
fn a_session_that_is_not_last_fails_alone() {
    let mut guest = Guest::start();
    guest.say(&Frame::Exec(1, side(&["no-such-program"])));
    assert!(matches!(guest.hear(), Some(Frame::ExecFailed(1, _))));
    guest.say(&Frame::Exec(1, side(&["echo", "again"])));
    assert_eq!(guest.follow(1).stdout, b"again\n");
}

#[test]
fn eight_mebibytes_go_in_and_come_out_unchanged_at_the_same_time() {
    let mut guest = Guest::start();
    let mut exec = last(&["cat"]);
    exec.stdin = true;
    guest.say(&Frame::Exec(1, exec));
    let sent: Vec<u8> = (0..8_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut credit, mut next, mut received) = (INITIAL_CREDIT as usize, 0, Vec::new());
    loop {
        let most = credit.min(MAX_PAYLOAD).min(sent.len() - next);
        if most > 0 {
            guest.say(&Frame::Data(1, Stream::Stdin, sent[next..next + most].to_vec()));
            next += most;
            credit -= most;
            if next == sent.len() {
                guest.say(&Frame::Close(1, Stream::Stdin));
            }
            continue;
        }
        match guest.hear().unwrap() {
            Frame::Credit(1, Stream::Stdin, bytes) => credit += bytes as usize,
            Frame::Data(1, Stream::Stdout, bytes) => {
                guest.say(&Frame::Credit(1, Stream::Stdout, u32::try_from(bytes.len()).unwrap()));
                received.extend(bytes);
            }
            Frame::Exit(1, exit) => {
                assert_eq!(exit, Exit::Status(0));
                break;
            }
            _ => {}
        }
    }
    assert!(received == sent, "{} bytes came back", received.len());
}

#[test]
fn without_credit_a_command_is_blocked_and_nothing_is_lost() {
    let mut guest = Guest::start();
    guest.say(&Frame::Exec(1, last(&["head", "-c", "1000000", "/dev/zero"])));
    let mut bytes = 0;
    let started = Instant::now();
    guest.socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    while bytes < INITIAL_CREDIT as usize {
        if let Some(Frame::Data(1, Stream::Stdout, data)) = guest.hear() {
            bytes += data.len();
        }
    }
    assert_eq!(bytes, INITIAL_CREDIT as usize);
    let mut byte = [0];
    let silence = std::io::Read::read(&mut guest.socket, &mut byte);
    assert!(silence.is_err(), "the guest went on without credit, after {:?}", started.elapsed());
    guest.socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    guest.say(&Frame::Credit(1, Stream::Stdout, 10_000_000));
    assert_eq!(bytes + guest.follow(1).stdout.len(), 1_000_000);
}

#[test]
fn stdin_that_nobody_reads_is_credited_all_the_same() {
    let mut guest = Guest::start();
    let mut exec = last_sh("exec 0<&-; echo closed; exec sleep 100");
    exec.stdin = true;
    guest.say(&Frame::Exec(1, exec));
    guest.hear_until(|frame| matches!(frame, Frame::Data(..)));
    for _ in 0..8 {
        guest.say(&Frame::Data(1, Stream::Stdin, vec![0; MAX_PAYLOAD / 2]));
    }
    let heard = guest.hear_until(|frame| matches!(frame, Frame::Credit(1, Stream::Stdin, _)));
    assert!(!heard.is_empty());
    guest.say(&Frame::Signal(1, 15));
    assert_eq!(guest.follow(1).exit, Some(Exit::Signal(15)));
}

#[test]
fn stdin_beyond_the_credit_ends_the_sandbox_with_the_reason() {
    let mut guest = Guest::start();
    let mut exec = last(&["sleep", "100"]);
    exec.stdin = true;
    guest.say(&Frame::Exec(1, exec));
    for _ in 0..=INITIAL_CREDIT as usize / MAX_PAYLOAD + 1 {
        guest.say(&Frame::Data(1, Stream::Stdin, vec![0; MAX_PAYLOAD]));
    }
    let heard = guest.hear_until(|frame| matches!(frame, Frame::Fatal(_)));
    let Some(Frame::Fatal(reason)) = heard.last() else { unreachable!() };
    assert!(reason.contains("beyond the credit"), "{reason}");
    assert_eq!(guest.wait(), Some(0));
}

#[test]
fn signals_reach_the_whole_process_group() {
    let mut guest = Guest::start();
    let script = "trap 'echo parent; wait; exit 3' TERM; sh -c 'trap \"echo child; exit\" TERM; echo up; \
                  while :; do sleep 0.05; done' & wait; echo not reached";
    guest.say(&Frame::Exec(1, last_sh(script)));
    guest.hear_until(|frame| matches!(frame, Frame::Data(_, _, bytes) if bytes == b"up\n"));
    guest.say(&Frame::Signal(1, 15));
    let ran = guest.follow(1);
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(said.contains("parent\n") && said.contains("child\n"), "{said}");
    assert_eq!(ran.exit, Some(Exit::Status(3)));
}

#[test]
fn a_user_runs_with_its_ids_and_home_and_owns_its_stdio() {
    if !rustix::process::geteuid().is_root() {
        // In a user namespace with one mapped id there are no other users.
        println!("HUSK-SKIP needs root: other users do not exist in a user namespace");
        return;
    }
    let mut exec = last_sh("id -u; id -g; id -G; echo $HOME; echo again >/dev/stdout");
    exec.user = User::Spec("1234:5678".into());
    let ran = run(exec);
    assert_eq!(String::from_utf8(ran.stdout).unwrap(), "1234\n5678\n5678\n/\nagain\n", "{:?}", ran.stderr);
    let mut exec = last_sh("id -un; id -G; echo $HOME");
    exec.user = User::Spec("nobody".into());
    let said = String::from_utf8(run(exec).stdout).unwrap();
    assert!(said.starts_with("nobody\n"), "{said}");
    assert!(said.ends_with("/nonexistent\n"), "{said}");
}

#[test]
fn sessions_live_side_by_side() {
    let mut guest = Guest::start();
    for id in 0..20 {
        guest.say(&Frame::Exec(id, side(&["sh", "-c", &format!("sleep 0.1; echo {id}; exit {id}")])));
    }
    let (mut exits, mut outputs) = (0, 0);
    while exits < 20 {
        match guest.hear().unwrap() {
            Frame::Exit(id, exit) => {
                assert_eq!(exit, Exit::Status(u8::try_from(id).unwrap()));
                exits += 1;
            }
            Frame::Data(id, Stream::Stdout, bytes) => {
                assert_eq!(bytes, format!("{id}\n").into_bytes());
                outputs += 1;
            }
            _ => {}
        }
    }
    assert_eq!(outputs, 20);
}

#[test]
fn leftovers_of_a_side_session_do_not_hold_up_its_exit_and_live_on() {
    let mut guest = Guest::start();
    let started = Instant::now();
    guest.say(&Frame::Exec(1, side(&["sh", "-c", "sleep 100 & echo $!"])));
    let ran = guest.follow(1);
    assert!(started.elapsed() < Duration::from_secs(10));
    let pid = String::from_utf8(ran.stdout).unwrap();
    guest.say(&Frame::Exec(2, last_sh(&format!("kill -0 {pid}"))));
    let ran = guest.follow(2);
    assert_eq!((ran.exit, ran.report.leftovers_killed), (Some(Exit::Status(0)), 1));
}

#[test]
fn the_end_kills_leftovers_counts_them_and_loses_no_output() {
    let script = "(trap '' TERM HUP; while :; do sleep 100; done) & setsid sleep 100 & \
                  (exec 1>&-; sleep 100) & head -c 60000 /dev/zero; echo end";
    let ran = run(last_sh(script));
    assert_eq!(ran.stdout.len(), 60004);
    assert_eq!(ran.exit, Some(Exit::Status(0)));
    // Three jobs; the first has a child of its own by the time, or not yet.
    assert!((3..=4).contains(&ran.report.leftovers_killed), "{:?}", ran.report);
}

#[test]
fn orphans_are_reaped_while_a_session_runs() {
    let script = "for i in 1 2 3; do sh -c 'sleep 0.05 & exit'; done; sleep 0.4; \
                  grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l";
    let ran = run(last_sh(script));
    assert_eq!(String::from_utf8(ran.stdout).unwrap().trim(), "0");
    assert_eq!(ran.report.leftovers_killed, 0);
}

#[test]
fn a_shutdown_ends_everything_and_reports() {
    let mut guest = Guest::start();
    guest.say(&Frame::Exec(1, side(&["sleep", "100"])));
    guest.hear_until(|frame| *frame == Frame::Started(1));
    guest.say(&Frame::Shutdown);
    let heard = guest.hear_until(|frame| matches!(frame, Frame::Report(_)));
    assert!(heard.contains(&Frame::Exit(1, Exit::Signal(9))), "{heard:?}");
    guest.say(&Frame::Exec(2, side(&["true"])));
    assert!(
        matches!(guest.hear(), Some(Frame::ExecFailed(2, failure)) if failure.message.contains("ending"))
    );
}

#[test]
fn what_a_command_costs_is_reported() {
    let ran = run(last_sh("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"));
    assert!(ran.report.user_us + ran.report.system_us > 10_000, "{:?}", ran.report);
    assert!(ran.report.max_rss_kib > 100, "{:?}", ran.report);
}

#[test]
fn a_host_that_hangs_up_ends_everything() {
    let mut guest = Guest::start();
    guest.say(&Frame::Exec(1, side(&["sleep", "100"])));
    guest.hear_until(|frame| *frame == Frame::Started(1));
    let started = Instant::now();
    assert_eq!(guest.wait(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn frames_out_of_order_and_garbage_are_answered_with_the_reason() {
    let fatal = |talk: &dyn Fn(&mut Guest)| {
        let mut guest = Guest::start_silent();
        talk(&mut guest);
        let heard = guest.hear_until(|frame| matches!(frame, Frame::Fatal(_)));
        let Some(Frame::Fatal(reason)) = heard.last() else { unreachable!() };
        reason.clone()
    };
    let hello = Frame::Hello(Hello { version: VERSION, features: 0 });
    let reason = fatal(&|guest| guest.say(&Frame::Shutdown));
    assert_eq!(reason, "the host broke the exec protocol: Shutdown came before Hello");
    let reason = fatal(&|guest| {
        guest.say(&hello);
        guest.say(&Frame::Exec(1, side(&["true"])));
    });
    assert_eq!(reason, "the host broke the exec protocol: Exec came before Mounts and Identity");
    let reason = fatal(&|guest| {
        guest.say(&hello);
        guest.say(&Frame::Ready);
    });
    assert_eq!(reason, "the host broke the exec protocol: Ready is not the host's to say");
    let reason =
        fatal(&|guest| guest.socket.write_all(&[255, 255, 255, 255, 10, 0, 0, 0, 0, 0, 0, 0]).unwrap());
    assert!(reason.contains("claims 4294967295 bytes"), "{reason}");
}
