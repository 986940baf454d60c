//! Sessions with a terminal.

mod host;

use host::{Guest, last_sh, run, side};
use husk_protocol::exec::{Exec, Exit, Frame, Stream, WindowSize};
use std::time::{Duration, Instant};

fn on_terminal(script: &str) -> Exec {
    Exec { terminal: Some(WindowSize { rows: 24, cols: 80 }), stdin: true, ..last_sh(script) }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_command_has_a_controlling_terminal_of_the_size_asked_for() {
    let ran =
        run(on_terminal("test -t 0 && test -t 1 && test -t 2 && stty size </dev/tty; echo $TERM; exit 4"));
    assert_eq!(text(&ran.stdout), "24 80\r\nxterm\r\n");
    assert_eq!(ran.exit, Some(Exit::Status(4)));
}

#[test]
fn a_resize_is_seen_and_signalled() {
    let mut guest = Guest::start();
    guest.say(&Frame::Exec(
        1,
        on_terminal("trap 'stty size; exit' WINCH; echo up; while :; do sleep 0.05; done"),
    ));
    guest.hear_until(|frame| matches!(frame, Frame::Data(_, _, bytes) if bytes.starts_with(b"up")));
    guest.say(&Frame::Resize(1, WindowSize { rows: 11, cols: 99 }));
    // The end of the line with "up" may come in a frame of its own.
    assert_eq!(text(&guest.follow(1).stdout).trim_start(), "11 99\r\n");
}

#[test]
fn keys_are_echoed_and_control_c_interrupts() {
    let mut guest = Guest::start();
    guest.say(&Frame::Exec(
        1,
        on_terminal("trap 'exit 9' INT; echo up; read line; echo got $line; while :; do sleep 0.05; done"),
    ));
    guest.hear_until(|frame| matches!(frame, Frame::Data(_, _, bytes) if bytes.starts_with(b"up")));
    guest.say(&Frame::Data(1, Stream::Stdin, b"hello\n".to_vec()));
    let mut said = String::new();
    while !said.contains("got hello\r\n") {
        if let Some(Frame::Data(_, _, bytes)) = guest.hear() {
            said += &text(&bytes);
        }
    }
    assert!(said.contains("hello\r\ngot hello\r\n"), "{said}");
    guest.say(&Frame::Data(1, Stream::Stdin, vec![3]));
    assert_eq!(guest.follow(1).exit, Some(Exit::Status(9)));
}

#[test]
fn a_closed_stdin_is_end_of_file_at_and_within_a_line() {
    for keys in ["", "line\n", "part"] {
        let mut guest = Guest::start();
        guest.say(&Frame::Exec(1, on_terminal("stty -echo; echo up; wc -c")));
        guest.hear_until(|frame| matches!(frame, Frame::Data(_, _, bytes) if bytes.starts_with(b"up")));
        if !keys.is_empty() {
            guest.say(&Frame::Data(1, Stream::Stdin, keys.as_bytes().to_vec()));
        }
        guest.say(&Frame::Close(1, Stream::Stdin));
        let ran = guest.follow(1);
        assert_eq!(text(&ran.stdout).trim(), keys.len().to_string(), "{keys:?}");
    }
}

#[test]
fn everything_printed_before_the_exit_arrives() {
    for _ in 0..20 {
        let ran = run(on_terminal("stty -onlcr; head -c 100000 /dev/zero; printf end"));
        assert_eq!(ran.stdout.len(), 100_003);
        assert!(ran.stdout.ends_with(b"end"));
    }
}

#[test]
fn a_holder_in_the_background_does_not_hold_up_the_exit() {
    let mut guest = Guest::start();
    let started = Instant::now();
    let mut exec = side(&["sh", "-c", "trap '' HUP; (trap '' HUP; sleep 100) & echo done"]);
    exec.terminal = Some(WindowSize { rows: 1, cols: 1 });
    guest.say(&Frame::Exec(1, exec));
    let ran = guest.follow(1);
    assert_eq!(text(&ran.stdout), "done\r\n");
    assert!(started.elapsed() < Duration::from_secs(10));
}
