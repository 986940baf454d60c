//! In a guest: puts load on one device and says what it took.

use husk_tests::load::{Job, guest};
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done =
        Job::parse(&words).and_then(|job| guest::run(&job).map_err(|error| format!("{words:?}: {error}")));
    match done {
        Ok(took) => {
            println!("{took}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("husk-load: {error}");
            ExitCode::FAILURE
        }
    }
}
