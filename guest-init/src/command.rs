//! From an [`Exec`] frame to what execve takes. Owns defaults (PATH, HOME, TERM) and the PATH lookup's candidates;
//! refuses what no system call could be told: a NUL inside, no program, a relative directory. Invariant: everything
//! the child of a fork needs is made here, before the fork.

use crate::accounts::{Account, AccountError, AccountFiles};
use crate::sys::StringVector;
use husk_protocol::exec::{Exec, ExecFailure, ExecFailureKind, User};
use rustix::io::Errno;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// PATH of a command whose environment has none.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// TERM of a command with a terminal whose environment has none.
const DEFAULT_TERM: &[u8] = b"xterm";
/// Longest name that a directory can hold (`NAME_MAX`).
const MOST_NAME_BYTES: usize = 255;

/// A command cannot be executed as asked.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommandError {
    /// No argument at all.
    #[error("the command is empty: name a program")]
    Empty,
    /// A NUL in an argument, a variable or the directory.
    #[error("{what} {value:?} has a NUL byte in it; the kernel takes none")]
    Nul {
        /// What kind of string.
        what: &'static str,
        /// The string.
        value: String,
    },
    /// A variable without a name.
    #[error("environment entry {0:?} is not of the form NAME=VALUE")]
    Variable(String),
    /// A directory that depends on where PID 1 is.
    #[error("working directory {0:?} is not absolute")]
    Relative(String),
    /// Nobody is called so.
    #[error(transparent)]
    Account(#[from] AccountError),
}

/// A command, ready for the fork.
#[derive(Debug)]
pub(crate) struct Command {
    /// What is tried, in this order.
    pub(crate) candidates: Vec<CString>,
    pub(crate) argv: StringVector,
    pub(crate) env: StringVector,
    pub(crate) cwd: CString,
    pub(crate) account: Account,
}

impl Command {
    /// Works out what `exec` asks for; reads the guest's account files if it names a user.
    ///
    /// # Errors
    /// What was asked for makes no sense.
    pub(crate) fn plan(exec: &Exec) -> Result<Self, CommandError> {
        let account = match &exec.user {
            User::Root => Account::root(),
            User::Spec(spec) => AccountFiles::read().find(spec)?,
        };
        let program = exec.argv.first().ok_or(CommandError::Empty)?;
        let cwd = if exec.cwd.is_empty() { b"/" } else { exec.cwd.as_slice() };
        if !cwd.starts_with(b"/") {
            return Err(CommandError::Relative(printable(cwd)));
        }
        let env = environment(&exec.env, &account.home, exec.terminal.is_some())?;
        let path = env.iter().find_map(|it| it.strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
        Ok(Self {
            candidates: candidates(program, path)?,
            argv: strings("argument", &exec.argv)?,
            cwd: string("working directory", cwd)?,
            env: strings("environment entry", &env)?,
            account,
        })
    }

    /// What the host is told when nothing could be executed; `errno` is of the candidate `at` (of all, if there were
    /// several and none is there).
    pub(crate) fn failure(&self, at: usize, errno: Errno) -> ExecFailure {
        let name = self.argv.strings().first().map_or(String::new(), |it| printable(it.to_bytes()));
        let tried = self.candidates.get(at).map(|it| it.to_bytes()).unwrap_or_default();
        let there = Path::new(OsStr::from_bytes(self.cwd.to_bytes())).join(OsStr::from_bytes(tried));
        let tried = printable(tried);
        let (kind, message) = match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG if name.contains('/') => {
                let message = if there.symlink_metadata().is_ok() {
                    format!(
                        "{name}: is there, but the interpreter that it names (its ELF loader or #! line) is not"
                    )
                } else {
                    format!("{name}: {errno}")
                };
                (ExecFailureKind::NotFound, message)
            }
            Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => {
                (ExecFailureKind::NotFound, format!("{name}: not found in PATH"))
            }
            Errno::NOEXEC => (
                ExecFailureKind::NotExecutable,
                format!("{tried}: neither a program for this machine nor a script with a #! line"),
            ),
            errno => (ExecFailureKind::NotExecutable, format!("{tried}: {errno}")),
        };
        ExecFailure { kind, message }
    }
}

/// Text for a message: bytes that are none are escaped, and what is too long is cut.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text: String = bytes
        .utf8_chunks()
        .flat_map(|chunk| {
            let bad = chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}"));
            std::iter::once(chunk.valid().to_owned()).chain(bad)
        })
        .collect();
    let clean = text.chars().map(|it| if it.is_control() { '?' } else { it });
    let mut short: String = clean.take(200).collect();
    if short.len() < text.len() && short.chars().count() == 200 {
        short.push('…');
    }
    short
}

fn string(what: &'static str, bytes: &[u8]) -> Result<CString, CommandError> {
    CString::new(bytes).map_err(|_| CommandError::Nul { what, value: printable(bytes) })
}

fn strings(what: &'static str, all: &[Vec<u8>]) -> Result<StringVector, CommandError> {
    let strings: Result<_, _> = all.iter().map(|bytes| string(what, bytes)).collect();
    Ok(StringVector::new(strings?))
}

/// The defaults, and the given entries over them; of two for one name the later stands.
fn environment(given: &[Vec<u8>], home: &[u8], terminal: bool) -> Result<Vec<Vec<u8>>, CommandError> {
    let mut env = vec![[b"PATH=", DEFAULT_PATH].concat(), [b"HOME=", home].concat()];
    if terminal {
        env.push([b"TERM=", DEFAULT_TERM].concat());
    }
    for entry in given {
        let name = match entry.iter().position(|&byte| byte == b'=') {
            Some(end) if end > 0 => &entry[..=end],
            _ => return Err(CommandError::Variable(printable(entry))),
        };
        match env.iter_mut().find(|it| it.starts_with(name)) {
            Some(earlier) => earlier.clone_from(entry),
            None => env.push(entry.clone()),
        }
    }
    Ok(env)
}

/// Where a program may be: itself if its name has a slash, else in each directory of `path` (an empty one is the
/// working directory, as in a shell).
fn candidates(program: &[u8], path: &[u8]) -> Result<Vec<CString>, CommandError> {
    if program.contains(&b'/') {
        return Ok(vec![string("program", program)?]);
    }
    if program.is_empty() || program.len() > MOST_NAME_BYTES {
        return Ok(Vec::new());
    }
    let directories = path.split(|&byte| byte == b':');
    let full = |directory: &[u8]| {
        let directory = if directory.is_empty() { b"." } else { directory };
        string("program", &[directory, b"/", program].concat())
    };
    directories.map(full).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(argv: &[&str], env: &[&str]) -> Exec {
        let bytes = |all: &[&str]| all.iter().map(|it| it.as_bytes().to_vec()).collect();
        Exec {
            argv: bytes(argv),
            env: bytes(env),
            cwd: Vec::new(),
            user: User::Root,
            terminal: None,
            stdin: false,
            last: false,
        }
    }

    fn env_of(exec: &Exec) -> Vec<String> {
        let command = Command::plan(exec).unwrap();
        command.env.strings().iter().map(|it| it.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn defaults_give_way_to_what_is_given() {
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        assert_eq!(env_of(&exec(&["a"], &[])), [path, "HOME=/root"]);
        let given = exec(&["a"], &["HOME=/x", "A=1", "PATHS=2", "A=3=4"]);
        assert_eq!(env_of(&given), [path, "HOME=/x", "A=3=4", "PATHS=2"]);
        let mut terminal = exec(&["a"], &[]);
        terminal.terminal = Some(husk_protocol::exec::WindowSize { rows: 1, cols: 1 });
        assert_eq!(env_of(&terminal)[2], "TERM=xterm");
    }

    #[test]
    fn a_bare_name_is_looked_for_along_path_and_only_there() {
        let command = Command::plan(&exec(&["sh", "-c"], &["PATH=/a::/b"])).unwrap();
        assert_eq!(command.candidates, [c"/a/sh".into(), c"./sh".into(), CString::from(c"/b/sh")]);
        let command = Command::plan(&exec(&["./sh"], &["PATH=/a"])).unwrap();
        assert_eq!(command.candidates, [CString::from(c"./sh")]);
        assert!(Command::plan(&exec(&[""], &[])).unwrap().candidates.is_empty());
        assert!(Command::plan(&exec(&["x".repeat(256).as_str()], &[])).unwrap().candidates.is_empty());
    }

    #[test]
    fn nonsense_is_named() {
        let said = |exec: &Exec| Command::plan(exec).unwrap_err().to_string();
        assert_eq!(said(&exec(&[], &[])), "the command is empty: name a program");
        assert_eq!(
            said(&exec(&["a", "b\0c"], &[])),
            r#"argument "b?c" has a NUL byte in it; the kernel takes none"#
        );
        assert_eq!(said(&exec(&["a"], &["=x"])), r#"environment entry "=x" is not of the form NAME=VALUE"#);
        let mut relative = exec(&["a"], &[]);
        relative.cwd = b"tmp".to_vec();
        assert_eq!(said(&relative), r#"working directory "tmp" is not absolute"#);
    }

    #[test]
    fn failures_say_what_a_shell_would() {
        let command = Command::plan(&exec(&["nope"], &[])).unwrap();
        let failure = command.failure(5, Errno::NOENT);
        assert_eq!(failure.kind, ExecFailureKind::NotFound);
        assert_eq!(failure.message, "nope: not found in PATH");
        let failure = Command::plan(&exec(&["/etc/passwd"], &[])).unwrap().failure(0, Errno::ACCESS);
        assert_eq!(failure.kind, ExecFailureKind::NotExecutable);
        assert_eq!(failure.message, "/etc/passwd: Permission denied (os error 13)");
        let failure = Command::plan(&exec(&["/etc/passwd"], &[])).unwrap().failure(0, Errno::NOENT);
        assert!(failure.message.contains("interpreter"), "{}", failure.message);
    }

    #[test]
    fn messages_stay_short_and_printable() {
        assert_eq!(printable(b"a\xffb\n"), r"a\xffb?");
        assert_eq!(printable(&[b'x'; 5000]).chars().count(), 201);
        assert_eq!(printable(&[b'x'; 200]), "x".repeat(200));
    }
}
