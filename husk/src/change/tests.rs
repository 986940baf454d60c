use super::ask::AskError;
use super::*;
use crate::state::tests::record;
use crate::state::{DriveRecord, State};
use husk_protocol::control::{Change, Changed, Fault};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

/// A sandbox that is registered, with a desk, and a file of 512 bytes.
struct Rig {
    state: State,
    base: PathBuf,
    file: PathBuf,
    desk: Desk,
    registration: Option<crate::state::Registration>,
}

impl Rig {
    fn new(name: &str) -> Self {
        let base = std::env::temp_dir().join(format!("husk-change-{}-{name}", std::process::id()));
        let state = State::at(&base);
        let registration = state.register("box").unwrap();
        let drives = [("data", true, false), ("image", false, false), ("husk-root", false, true)];
        let drives = drives.map(|(id, writable, part)| DriveRecord { id: id.into(), writable, part });
        registration.publish(&crate::state::Record { drives: drives.into(), ..record("box", 1) }).unwrap();
        let desk = Desk::open(registration.directory()).unwrap();
        let file = base.join("new.img");
        std::fs::write(&file, [7; 512]).unwrap();
        Self { state, base, file, desk, registration: Some(registration) }
    }

    fn asks(&self, id: &str) -> std::thread::JoinHandle<Result<String, AskError>> {
        let (state, ask) = (self.state.clone(), Ask::Drive { id: id.into(), file: self.file.clone() });
        std::thread::spawn(move || super::ask(&state, "bo", &ask))
    }

    fn question(&mut self) -> desk::Question {
        for _ in 0..1000 {
            if let Some(question) = self.desk.ready() {
                return question;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("nobody asked");
    }

    fn refused(&self, id: &str) -> String {
        self.asks(id).join().unwrap().unwrap_err().to_string()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.registration.take().map(|registration| registration.remove());
        let _ = std::fs::remove_dir_all(&self.base);
    }
}

#[test]
fn a_question_arrives_with_its_file_and_the_answer_goes_back() {
    let mut rig = Rig::new("answer");
    let refusal = Changed::refused(Fault::Host, "drive \"data\": the disk\nhangs");
    for (round, answer) in [Changed::default(), refusal, Changed::default()].into_iter().enumerate() {
        let asker = rig.asks("data");
        let question = rig.question();
        let Wish::Cell(Change::Drive(drive)) = &question.wish else { panic!("{:?}", question.wish) };
        assert_eq!(drive.drive_id, "data");
        let file = std::fs::File::from(question.file.unwrap());
        let (ours, theirs) = (std::fs::metadata(&rig.file).unwrap(), file.metadata().unwrap());
        assert_eq!((ours.ino(), ours.dev()), (theirs.ino(), theirs.dev()));
        // While the sandbox has it, it is locked.
        assert!(rig.refused("data").contains("in use"), "round {round}");
        drop(file);
        assert!(rig.desk.ready().is_none(), "nobody else has his turn yet");
        rig.desk.answer(question.number.wrapping_add(1), &Changed::default());
        rig.desk.answer(question.number, &answer);
        let told = asker.join().unwrap();
        match answer.refused {
            None => assert_eq!(told.unwrap(), "box"),
            Some(_) => {
                let error = told.unwrap_err();
                assert_eq!(error.to_string(), "sandbox box: drive \"data\": the disk?hangs");
                assert_eq!(error.fault(), Fault::Host);
            }
        }
    }
}

#[test]
fn what_cannot_be_is_refused_before_anybody_is_asked() {
    let mut rig = Rig::new("refused");
    assert!(
        rig.refused("nope").contains("\"nope\" is not one of the sandbox's; it has data, image, husk-root")
    );
    assert!(rig.refused("husk-root").contains("part of a file"));
    std::fs::write(&rig.file, [7; 513]).unwrap();
    assert!(rig.refused("data").contains("512"));
    std::fs::remove_file(&rig.file).unwrap();
    assert!(rig.refused("image").contains("new.img"));
    let unknown =
        super::ask(&rig.state, "x", &Ask::Drive { id: "data".into(), file: "y".into() }).unwrap_err();
    assert!(
        unknown.to_string().contains("no sandbox's id begins with") && unknown.fault() == Fault::Operator
    );
    assert!(rig.desk.ready().is_none());
}

#[test]
fn nonsense_and_silence_hold_the_desk_for_a_moment_only() {
    let mut rig = Rig::new("nonsense");
    let connected = |rig: &mut Rig| {
        let (address, _directory) = address(rig.registration.as_ref().unwrap().directory()).unwrap();
        use rustix::net::{AddressFamily, SocketType, connect, socket};
        let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        connect(&socket, &address).unwrap();
        assert!(rig.desk.ready().is_none());
        socket
    };
    let socket = connected(&mut rig);
    send(&socket, b"{\"vcpus\": 1}", &[]).unwrap();
    assert!(rig.desk.ready().is_none());
    assert!(String::from_utf8_lossy(&receive(socket.as_fd()).unwrap().0).contains("unknown variant"));
    let socket = connected(&mut rig);
    send(&socket, &vec![b' '; MAX_CHANGE + 1], &[]).unwrap();
    assert!(rig.desk.ready().is_none());
    assert!(String::from_utf8_lossy(&receive(socket.as_fd()).unwrap().0).contains("cannot be taken"));
    let _silent = connected(&mut rig);
    let until = rig.desk.deadline().unwrap();
    assert!(rig.desk.ready().is_none() && rig.desk.deadline().is_some());
    std::thread::sleep(until.saturating_duration_since(std::time::Instant::now()));
    assert!(rig.desk.ready().is_none() && rig.desk.deadline().is_none());
    let asker = rig.asks("data");
    let question = rig.question();
    rig.desk.answer(question.number, &Changed::default());
    assert_eq!(asker.join().unwrap().unwrap(), "box");
}

#[test]
fn a_sandbox_that_ends_meanwhile_says_nothing_and_is_named() {
    let mut rig = Rig::new("ended");
    let asker = rig.asks("image");
    let _question = rig.question();
    rig.desk = Desk::open(&std::env::temp_dir()).unwrap();
    std::fs::remove_file(std::env::temp_dir().join(NAME)).unwrap();
    assert_eq!(asker.join().unwrap().unwrap_err().to_string(), "sandbox box has ended");
    assert_eq!(rig.refused("image"), "sandbox box has ended");
}

#[test]
fn memory_is_asked_for_within_what_the_sandbox_was_started_for() {
    let mut rig = Rig::new("memory");
    let ask = |rig: &Rig, mib| {
        let state = rig.state.clone();
        std::thread::spawn(move || super::ask(&state, "bo", &Ask::Memory(mib)))
    };
    for mib in [0, 127, 129, 130, u64::MAX] {
        let error = ask(&rig, mib).join().unwrap().unwrap_err();
        let said =
            format!("--memory {mib}M: 128M, which the sandbox booted in, to 128M is allowed, in steps of 2M");
        assert_eq!((error.to_string(), error.fault()), (said, Fault::Operator));
    }
    let registration = rig.registration.as_ref().unwrap();
    registration.publish(&crate::state::Record { memory_mib: 512, ..record("box", 1) }).unwrap();
    let asker = ask(&rig, 300);
    let question = rig.question();
    let asked = husk_protocol::control::MemoryChange { requested_size_mib: 172 };
    assert_eq!((question.wish, question.file.is_none()), (Wish::Cell(Change::Memory(asked)), true));
    rig.desk.answer(question.number, &Changed::default());
    assert_eq!(asker.join().unwrap().unwrap(), "box");
}
