//! Program of the tests in a Linux guest: a database that is written all the time, and agents that
//! mean harm to the host.

mod database;
mod hostile;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["write", folder] => database::write(folder),
        ["look", folder] => database::look(folder),
        ["check", folder] => database::check(folder),
        ["agent", manner, port] => hostile::serve(manner, port),
        _ => Err("usage: write FOLDER | look FOLDER | check FOLDER | agent MANNER PORT".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
